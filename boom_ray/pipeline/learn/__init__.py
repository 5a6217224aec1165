"""Learned coefficients of a merge: one per model and group of layers, by gradient on a development set."""
