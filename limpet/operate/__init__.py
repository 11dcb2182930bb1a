"""What operators see, and the socket by which they ask."""
