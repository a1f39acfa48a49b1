"""Gaussian fields of wide networks: kernels, their corrections, and finite networks."""
