"""The machinery: a model, a scheme, an average, a solution, its branches."""
