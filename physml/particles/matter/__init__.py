"""Charges in the plane, points on spheres: energies whose minima, laws and cumulants are known."""
