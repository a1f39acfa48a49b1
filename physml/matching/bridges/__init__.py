"""Schrödinger bridges: entropic plans in closed form and learned ones."""
