"""Glasses, random networks, ecologies."""
