"""What is minimised: one matching loss, and losses of one-step, population and many-law fields."""
