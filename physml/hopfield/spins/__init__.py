"""Binary memories and their Monte Carlo."""
