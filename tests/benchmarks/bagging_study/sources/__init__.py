"""Readers of the pinned inputs: one kind of text a file, each a generator of examples."""
