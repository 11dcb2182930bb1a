"""The server adapters: one file or package for each server."""
