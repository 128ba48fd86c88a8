"""Relaxed energies of CRFs with arbitrary pairwise potentials, and what minimises them: CRF-Grad."""
