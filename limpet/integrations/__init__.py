"""Libraries that make session ids, taught to make such as bring the client home. One file for each."""
