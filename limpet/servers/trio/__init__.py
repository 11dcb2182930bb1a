"""Streams on trio."""
