"""Measures and interactions: what one particle feels of the others."""
