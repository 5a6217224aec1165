"""The file of a record: `artifact.json`, or for embeddings a parquet file without rows, `_artifact.parquet`.

Readers of dataframes open a whole directory, and some refuse one that contains anything but parquet: polars
reads every file, hidden ones too, while pyarrow and pandas skip names that begin with `_`. A file of the same
schema without row groups is right for all of them; the record is in its key-value metadata.
"""

import pyarrow as pa
import pyarrow.parquet as pq

from boom_ray import storage
from boom_ray.errors import StorageError

RECORD, PARQUET_RECORD = "artifact.json", "_artifact.parquet"
RECORDS = (RECORD, PARQUET_RECORD)
KEY = b"artifact"
MAX_BYTES = (1 << 31) - 1  # of the metadata: a record lists all files, and the ids that an output deletes


def find_record(uri: str) -> str | None:
    """The URI of the record of the artifact at `uri`; None if there is no complete artifact."""
    locations = (storage.join(uri, name) for name in RECORDS)
    return next((location for location in locations if storage.is_file(location)), None)


def read_json(location: str) -> bytes:
    """The record in a file, as JSON.

    Raises:
        StorageError: if a parquet file is damaged, or contains no record.
    """
    if storage.name_of(location) == RECORD:
        return storage.read_bytes(location)
    try:
        with storage.open_input(location) as handle:
            file = pq.ParquetFile(handle, thrift_string_size_limit=MAX_BYTES)
            return (file.metadata.metadata or {})[KEY]
    except (KeyError, pa.ArrowException) as error:
        raise StorageError(f"{location}: not an artifact record: its metadata cannot be read") from error


def content_of(name: str, json: bytes, directory: str, files: list[str]) -> bytes:
    """The content of a record's file.

    Args:
        name: One of `RECORDS`.
        json: The record.
        directory: Directory of the files of the artifact.
        files: Their names; a parquet record takes the schema of the first.
    """
    if name == RECORD:
        return json
    with storage.open_input(storage.join(directory, files[0])) as file:
        schema = pq.read_schema(file)
    sink = pa.BufferOutputStream()
    pq.ParquetWriter(sink, schema.with_metadata({KEY: json})).close()
    return sink.getvalue().to_pybytes()
