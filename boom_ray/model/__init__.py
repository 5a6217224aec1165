"""The embedding model: loading, pooling, and the directory it is published as."""
