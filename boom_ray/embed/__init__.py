"""Batch embedding with Ray Data: files of texts in, parquet files of vectors out."""
