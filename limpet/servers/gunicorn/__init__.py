"""gunicorn's adapter: its arbiter stays away, its workers serve."""
