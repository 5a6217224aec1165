"""Row filters in Python notation, such as `lang == 'en' and (stars > 3 or not checked)`."""

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from boom_ray.embed import value_types
from boom_ray.errors import InputError

Kind = Literal["text", "numbers", "truth values"]
ARROW_TYPES: dict[Kind, pa.DataType] = {
    "text": pa.string(),
    "numbers": pa.float64(),
    "truth values": pa.bool_(),
}
COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda column, values: column.isin(values),
}


@dataclass(frozen=True)
class Condition:
    """A filter of rows.

    Attributes:
        expression: Of the columns in `kinds`.
        kinds: What each column is compared with, which decides how text in a file is read.
    """

    expression: pc.Expression
    kinds: dict[str, Kind]

    def rows(self, columns: dict[str, pa.Array], from_text: frozenset[str], uri: str = "") -> pa.Array:
        """Indices of the rows that satisfy it.

        Args:
            columns: The columns in `kinds`.
            from_text: Columns whose values are text in their file: cells of CSV, names of directories.
            uri: URI of their file, which an error names.

        Raises:
            InputError: if a column cannot be compared with what the filter names.
        """
        typed = [
            _typed(name, columns[name], kind, name in from_text, uri) for name, kind in self.kinds.items()
        ]
        numbers = pa.array(range(len(typed[0])), pa.int64())
        table = pa.table([*typed, numbers], names=[*self.kinds, "\0row"])
        return table.filter(self.expression)["\0row"].combine_chunks()


def parse(text: str) -> Condition:
    """Translate a filter into a pyarrow expression.

    The text is parsed, never evaluated: only the syntax nodes below are translated.

    Raises:
        InputError: if the text contains anything but comparisons of columns with values, joined by and, or,
            not; or compares a column with values of several kinds.
    """
    kinds: dict[str, Kind] = {}
    try:
        return Condition(_expression(ast.parse(text, mode="eval").body, kinds), kinds)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise InputError(
            f"filter {text!r}: not a condition: {error}. Allowed: comparisons of a column with a value "
            "(== != < <= > >= in), joined by and, or, not"
        ) from error


def _expression(node: ast.expr, kinds: dict[str, Kind]) -> Any:
    if isinstance(node, ast.BoolOp):
        join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        parts = [_expression(part, kinds) for part in node.values]
        joined = parts[0]
        for part in parts[1:]:
            joined = join(joined, part)
        return joined
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_expression(node.operand, kinds)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        value = ast.literal_eval(node.comparators[0])
        values = value if isinstance(node.ops[0], ast.In) else [value]
        if not isinstance(values, list | tuple) or not values:
            raise ValueError(f"{ast.unparse(node.comparators[0])!r} is not a list of values")
        for one in values:
            column = _column(node.left, _kind(one), kinds)
        return COMPARISONS[type(node.ops[0])](
            column, list(values) if isinstance(node.ops[0], ast.In) else value
        )
    return _column(node, "truth values", kinds)


def _kind(value: Any) -> Kind:
    if isinstance(value, bool):
        return "truth values"
    if isinstance(value, int | float):
        return "numbers"
    if isinstance(value, str):
        return "text"
    raise ValueError(f"{value!r} is not a text, a number, True or False")


def _column(node: ast.expr, kind: Kind, kinds: dict[str, Kind]) -> pc.Expression:
    if not isinstance(node, ast.Name):
        raise ValueError(f"{ast.unparse(node)!r} is not a column")
    if kinds.setdefault(node.id, kind) != kind:
        raise ValueError(f"{node.id!r} is compared with {kinds[node.id]} and with {kind}")
    return pc.field(node.id)


def _typed(name: str, values: pa.Array, kind: Kind, from_text: bool, uri: str) -> pa.Array:
    """A column as values of one kind."""
    if from_text and kind != "text":
        values = value_types.converted_text(values, value_types.type_of_text(values))
    if pa.types.is_null(values.type):
        return values.cast(ARROW_TYPES[kind])
    if not _is_of_kind(values.type, kind):
        found = "text" if value_types.is_text(values.type) else values.type
        raise InputError(
            f"{uri}: column {name!r} holds {found}, and the filter compares it with {kind}. Change the filter"
        )
    return values


def _is_of_kind(data_type: pa.DataType, kind: Kind) -> bool:
    types = pa.types
    if kind == "text":
        return value_types.is_text(data_type)
    if kind == "truth values":
        return types.is_boolean(data_type)
    return types.is_integer(data_type) or types.is_floating(data_type) or types.is_decimal(data_type)
