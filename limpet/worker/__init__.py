"""What every worker contains, whatever its server."""
