"""A run as one HTML page: a view of what its stages stored, for those who decide and those who build."""
