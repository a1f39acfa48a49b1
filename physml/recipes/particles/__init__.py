"""Recipes whose subject is `physml.particles`."""
