"""From a request to its slot, pure: no I/O, and time comes in as an argument."""
