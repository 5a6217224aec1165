"""A partition as a row of Ray Data, and its counts in parquet metadata."""

import io
from dataclasses import asdict

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from boom_ray.embed.partition import Partition, PartitionMetadata
from boom_ray.embed.probe import ComputeSettings
from boom_ray.embed.vectors import Scales

PARTITION = Partition("part-0-0.parquet", texts=2, tokens=7, read=0.5, size=1 << 33, xxh3_128="ab")


def test_a_partition_and_its_table_survive_as_one_row():
    vectors = pa.FixedSizeListArray.from_arrays(pa.array([1.0, 2.0, 3.0, 4.0], pa.float32()), 2)
    table = pa.table({"id": ["a", "b"], "text": pa.chunked_array([["x"], [None]]), "embedding": vectors})
    row = PARTITION.to_arrow(table)
    assert row.num_rows == 1
    assert Partition.from_arrow(row) == (PARTITION, table.combine_chunks())
    assert Partition.from_row(row.to_pylist()[0]) == PARTITION


def test_a_row_among_others_yields_its_own_table():
    tables = [pa.table({"id": [1, 2]}), pa.table({"id": [3]})]
    rows = pa.concat_tables([PARTITION.to_arrow(table) for table in tables])
    assert [Partition.from_arrow(rows.slice(index, 1))[1] for index in (0, 1)] == tables


def test_columns_may_have_the_names_of_fields():
    table = pa.table({name: [1, 2] for name in asdict(PARTITION)})
    assert Partition.from_arrow(PARTITION.to_arrow(table)) == (PARTITION, table)


@pytest.mark.parametrize("scales", [None, ([0.1, -0.7], [1 / 3, 0.2])])
def test_metadata_is_read_back_from_a_parquet_file(scales):
    file, expected = io.BytesIO(), Scales.from_lists(*scales) if scales else None
    metadata = PartitionMetadata(7, 2, ComputeSettings("bfloat16", 3), expected)
    pq.write_table(pa.table({"id": [1]}).replace_schema_metadata(metadata.to_arrow()), file)
    read = PartitionMetadata.from_arrow(pq.read_metadata(file).metadata)
    assert (read.tokens, read.texts, read.compute) == (7, 2, ComputeSettings("bfloat16", 3))
    assert (read.scales and read.scales.to_lists()) == (expected and expected.to_lists())
