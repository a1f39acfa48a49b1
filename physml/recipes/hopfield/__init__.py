"""Recipes whose subject is `physml.hopfield`."""
