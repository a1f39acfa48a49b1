"""Recipes whose subject is `physml.dmft`."""
