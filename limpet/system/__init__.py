"""Thin wrappers around kernel interfaces and around the environment that a service manager sets."""
