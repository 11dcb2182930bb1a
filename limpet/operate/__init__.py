"""What operators see, and the socket through which they ask."""
