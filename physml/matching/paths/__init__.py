"""Probability paths: how noise becomes data, and what is known of the way."""
