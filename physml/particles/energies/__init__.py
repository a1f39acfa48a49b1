"""Energies with structure: functions with a proximal map, sums over pairs."""
