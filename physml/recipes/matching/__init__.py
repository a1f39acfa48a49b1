"""Recipes whose subject is `physml.matching`."""
