"""A kept-alive connection changes its worker."""
