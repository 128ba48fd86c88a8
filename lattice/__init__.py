"""The permutohedral lattice: elevation, enclosing simplex, barycentric weights, and the filter on it."""

from lattice.elevation import elevate
from lattice.permutohedral import PermutohedralLattice
from lattice.simplex import barycentric_weights, corner_coordinates, enclosing_simplex

__all__ = [
    "PermutohedralLattice",
    "barycentric_weights",
    "corner_coordinates",
    "elevate",
    "enclosing_simplex",
]
