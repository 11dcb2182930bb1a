"""What strangers' bytes may do to limpet's readers: one function for each, to be called with any bytes at all.

`targets` says what must hold, `__main__` looks for bytes for which it does not (`make fuzz`), `tests/corpus` has what
was found interesting on the way. tests/unit/test_fuzz.py tries the corpus, and changes of it, each time.
"""
