"""One schema for all rows of a source, from the schemas of the tables that were read."""

from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.parquet as pq

from boom_ray.embed import value_types
from boom_ray.embed.text_source import COPIED, SourceUnit, TextSource
from boom_ray.errors import InputError

if TYPE_CHECKING:
    from boom_ray.embed.unit_tally import UnitTally


def unified(source: TextSource, unit: SourceUnit, one: pa.Schema | None, other: pa.Schema) -> pa.Schema:
    """The smallest schema that holds the rows of two tables.

    Args:
        unit: The unit of the second table, which an error names.

    Raises:
        InputError: if a column has values of types that cannot be stored together.
    """
    if one is None or one == other:
        return other
    fields = []
    for field in one:
        name, types = field.name.removeprefix(COPIED), (field.type, other.field(field.name).type)
        try:
            if source.is_from_text(unit.file, name) and field.name.startswith(COPIED):
                fields.append(field.with_type(value_types.unified_text(*types)))
            else:
                fields.append(field.with_type(value_types.unified(*types)))
        except pa.ArrowException as error:
            raise InputError(
                f"{unit.file.uri}: column {source.name_in_input(name)!r} is {types[1]}, and {types[0]} "
                "before. Write all values of a column as one type, for example as text"
            ) from error
    return pa.schema(fields)


def common(source: TextSource, units: list[SourceUnit], tallies: "list[UnitTally]") -> pa.Schema:
    """The schema of all rows.

    Raises:
        InputError: if a column has values of types that cannot be stored together, or not in parquet.
    """
    schema = None
    for unit, tally in zip(units, tallies, strict=True):
        if tally.types:
            schema = unified(source, unit, schema, pa.ipc.read_schema(pa.py_buffer(tally.types)))
    assert schema is not None, "a source without rows is refused"
    for field in schema:
        name = field.name.removeprefix(COPIED)
        try:
            pq.ParquetWriter(pa.BufferOutputStream(), pa.schema([field.with_name(name)])).close()
        except pa.ArrowException as error:
            raise InputError(
                f"{source.uri}: column {name!r} is {field.type}, which parquet cannot store: {error}. "
                "Omit it from columns"
            ) from error
    return schema
