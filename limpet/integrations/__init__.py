"""Libraries that make session ids, adapted so that an id routes back to the worker that made it. One file for each."""
