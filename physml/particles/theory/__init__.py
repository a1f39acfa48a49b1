"""What is known of these dynamics without simulating them."""
