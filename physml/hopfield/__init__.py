"""Associative memory: energies, retrieval, layers, and their statistical mechanics."""
