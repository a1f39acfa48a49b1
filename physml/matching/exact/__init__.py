"""Fields and residuals known exactly."""
