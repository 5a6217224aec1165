"""Merging: M models of one architecture become one, in a stream."""
