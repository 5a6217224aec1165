"""Batch embedding: texts in an object store become vectors in an object store, through Ray Data."""
