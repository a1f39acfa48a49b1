"""Learning dynamics in the limits of width, dimension and depth."""
