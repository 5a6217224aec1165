"""boom-ray: train, merge, refresh and serve text embedding models by bagging, on Ray."""

__version__ = "0.1.0"
