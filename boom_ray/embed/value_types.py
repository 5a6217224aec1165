"""Types of columns: one for all rows and files of a source.

Types grow from null to integer to floating point. Values that are text in their file (cells of CSV, names of
directories) become numbers or truth values only if all of them are; the others must agree.
"""

import pyarrow as pa
import pyarrow.compute as pc

INTEGER = r"^-?(0|[1-9][0-9]{0,17})$"  # `007` and numbers of more than 64 bits stay text
NUMBER = r"^-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?$"
TRUTH = r"^(true|false|True|False|TRUE|FALSE)$"
TEXT_KINDS = ((INTEGER, pa.int64()), (NUMBER, pa.float64()), (TRUTH, pa.bool_()))


def is_text(data_type: pa.DataType) -> bool:
    """Whether values of a type are strings, however they are stored."""
    if pa.types.is_dictionary(data_type):
        return is_text(data_type.value_type)
    return (
        pa.types.is_string(data_type)
        or pa.types.is_large_string(data_type)
        or pa.types.is_string_view(data_type)
    )


def plain(data_type: pa.DataType) -> pa.DataType:
    """The type of the same values without dictionaries, views and extensions, which not all readers know."""
    types = pa.types
    if isinstance(data_type, pa.BaseExtensionType):
        return plain(data_type.storage_type)
    if types.is_dictionary(data_type) or types.is_run_end_encoded(data_type):
        return plain(data_type.value_type)
    if types.is_string_view(data_type):
        return pa.string()
    if types.is_binary_view(data_type):
        return pa.binary()
    if types.is_struct(data_type):
        return pa.struct([field.with_type(plain(field.type)) for field in data_type])
    if types.is_fixed_size_list(data_type):
        return pa.list_(data_type.value_field.with_type(plain(data_type.value_type)), data_type.list_size)
    if types.is_large_list(data_type) or types.is_large_list_view(data_type):
        return pa.large_list(data_type.value_field.with_type(plain(data_type.value_type)))
    if types.is_list(data_type) or types.is_list_view(data_type):
        return pa.list_(data_type.value_field.with_type(plain(data_type.value_type)))
    return data_type


def unified(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The smallest type that holds the values of both.

    Raises:
        pa.ArrowException: if there is none: text and numbers, for example.
    """
    schemas = [pa.schema([("column", data_type)]) for data_type in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def unified_text(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    """The same for values that are text in their file: strings hold all of them."""
    try:
        return unified(one, other)
    except pa.ArrowException:
        return pa.string()


def type_of_text(cells: pa.Array) -> pa.DataType:
    """The smallest type that holds all cells; empty ones and nulls are null."""
    filled = cells.filter(pc.fill_null(pc.not_equal(cells, ""), False))
    if not len(filled):
        return pa.null()
    kinds = (
        kind for pattern, kind in TEXT_KINDS if pc.all(pc.match_substring_regex(filled, pattern)).as_py()
    )
    return next(kinds, pa.string())


def converted_text(cells: pa.Array, data_type: pa.DataType) -> pa.Array:
    """Cells as values of a type that `type_of_text` found."""
    if pa.types.is_string(data_type):
        return cells
    if pa.types.is_null(data_type):
        return pa.nulls(len(cells))
    values = pc.if_else(pc.equal(cells, ""), None, cells)
    return (pc.utf8_lower(values) if pa.types.is_boolean(data_type) else values).cast(data_type)
