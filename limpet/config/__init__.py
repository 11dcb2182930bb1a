"""What the user set: typed, and checked once."""
