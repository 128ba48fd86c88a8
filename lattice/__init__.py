"""The permutohedral lattice: elevation, enclosing simplex, weights, and filters on it, fixed or learned."""

from lattice.elevation import elevate
from lattice.learned_convolution import BilateralConv, PermutohedralConv
from lattice.neighbourhood import neighbourhood_lattice, neighbourhood_offsets
from lattice.permutohedral import PermutohedralLattice
from lattice.simplex import barycentric_weights, corner_coordinates, enclosing_simplex

__all__ = [
    "BilateralConv",
    "PermutohedralConv",
    "PermutohedralLattice",
    "barycentric_weights",
    "corner_coordinates",
    "elevate",
    "enclosing_simplex",
    "neighbourhood_lattice",
    "neighbourhood_offsets",
]
