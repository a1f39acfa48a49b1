"""Energies with structure: proximal maps, pairs, charges, directions."""
