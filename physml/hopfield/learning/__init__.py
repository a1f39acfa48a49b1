"""Memories and machines that are trained."""
