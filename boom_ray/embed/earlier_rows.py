"""Rows that earlier outputs contain."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from boom_ray import artifacts, storage
from boom_ray.artifacts import EmbeddingsRecord
from boom_ray.embed.text_source import TEXT_HASH, id_hashes, row_keys
from boom_ray.errors import ConflictError, NotFoundError


@dataclass(frozen=True)
class EarlierRows:
    """Rows of earlier outputs.

    Attributes:
        keys: Sorted uint64, `row_keys` of all rows.
        ids: Sorted uint64, hashes of all ids.
        names: The ids themselves, in the order of `ids`.
    """

    keys: np.ndarray
    ids: np.ndarray
    names: list[Any]


def read_earlier(
    outputs: tuple[str, ...], model: str, fingerprint: dict[str, Any], id_type: pa.DataType
) -> EarlierRows:
    """The rows of earlier outputs.

    Args:
        outputs: URIs of earlier outputs.
        model: Digest of the model of this run.
        fingerprint: The other settings on which vectors depend.
        id_type: Type of the ids of this run.

    Raises:
        NotFoundError: if a URI contains no embeddings.
        ConflictError: if an output was made with another model or other settings, or has ids of another kind.
    """
    tables = []
    for uri in outputs:
        record = _comparable_record(uri, model, fingerprint)
        for name in record.files:
            if name.endswith(".parquet"):
                with storage.open_input(storage.join(uri, name)) as file:
                    tables.append(pq.read_table(file, columns=["id", TEXT_HASH]))
                _refuse_other_ids(uri, tables[-1].schema.field("id").type, id_type)
    if not tables:
        return EarlierRows(np.empty(0, np.uint64), np.empty(0, np.uint64), [])
    table = pa.concat_tables(tables, promote_options="permissive")
    hashes = id_hashes(table["id"])
    order = np.argsort(hashes)
    names = table["id"].take(pa.array(order)).to_pylist()
    return EarlierRows(np.unique(row_keys(table)), hashes[order], names)


def _comparable_record(uri: str, model: str, fingerprint: dict[str, Any]) -> EmbeddingsRecord:
    """The record of an output whose vectors can be compared with those of this run."""
    record = artifacts.find(uri, EmbeddingsRecord)
    if record is None:
        raise NotFoundError(f"since {uri}: contains no embeddings. Name the output of an earlier run")
    if record.config.model != model:
        raise ConflictError(
            f"since {uri}: was made by another model ({record.parents[0].name} "
            f"{record.parents[0].version}), whose vectors cannot be compared with this one's: all rows "
            "must be embedded again. Omit since"
        )
    different = [
        f"{key}: {getattr(record.config, key)!r}"
        for key in fingerprint
        if getattr(record.config, key) != fingerprint[key]
    ]
    if different:
        raise ConflictError(f"since {uri}: was made with {', '.join(different)}. Use the same, or omit since")
    return record


def _refuse_other_ids(uri: str, earlier: pa.DataType, now: pa.DataType) -> None:
    """Refuse integers where ids are strings now: no id would be recognized."""
    if pa.types.is_integer(earlier) != pa.types.is_integer(now):
        raise ConflictError(f"since {uri}: its ids are {earlier}, and those of the input {now}. Use one type")
