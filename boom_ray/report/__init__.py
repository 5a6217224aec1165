"""A run as one HTML page: a view of the files that its stages stored."""
