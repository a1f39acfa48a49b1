"""Retrieval from a memory, as a map, as layers, and its bounds."""
