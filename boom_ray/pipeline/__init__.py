"""The pipeline: the stages put together, from a recipe to a published version and its updates."""
