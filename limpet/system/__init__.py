"""Thin wrappers of the kernel and of the service manager's environment."""
