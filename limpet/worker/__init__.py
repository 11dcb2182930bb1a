"""What is in each worker, whatever its server."""
