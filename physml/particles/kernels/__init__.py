"""Markov kernels, one algorithm a file."""
