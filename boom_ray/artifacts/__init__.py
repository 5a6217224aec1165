"""Artifacts: directories with a record of their lineage and hashes, published in one step."""

from boom_ray.artifacts.record import (
    RECORD,
    FileEntry,
    Parent,
    Record,
    TensorEntry,
    digest_of,
    fingerprint,
    hash_file,
    hash_tensors,
    hash_tree,
    libraries,
    read_record,
    submission_id,
    verify,
)

__all__ = [
    "RECORD",
    "FileEntry",
    "Parent",
    "Record",
    "TensorEntry",
    "digest_of",
    "fingerprint",
    "hash_file",
    "hash_tensors",
    "hash_tree",
    "libraries",
    "read_record",
    "submission_id",
    "verify",
]
