"""Twisted's adapter."""
