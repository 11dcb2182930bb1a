"""What the workers of one server share, for the application; each file of this package owns one subject."""
