"""Recipes whose subject is `physml.integrate`."""
