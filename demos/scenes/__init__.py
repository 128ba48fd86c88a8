"""Scenes with known labels for the demos, tests and benchmarks: a street, a room, a street in space and time.

All is made with NumPy from a seed, in a second or two. Colours tell the classes apart in part only: a grey
car stands before a grey house. Labels are int64; each names a class by its place in the names beside it.
"""

from .errors import damaged_labels, network_output
from .room import ROOM, scanned_room
from .scores import flicker, mean_iou
from .street import STREET, moving_scene
from .voxel_street import CITY, moving_voxels

__all__ = [
    "CITY",
    "ROOM",
    "STREET",
    "damaged_labels",
    "flicker",
    "mean_iou",
    "moving_scene",
    "moving_voxels",
    "network_output",
    "scanned_room",
]
