"""Row filters in Python notation, such as `lang == 'en' and (stars > 3 or not checked)`."""

import ast
import operator
from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc

from boom_ray.errors import InputError

COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda column, values: column.isin(values),
}


def parse(text: str) -> tuple[pc.Expression, set[str]]:
    """Translate a filter into a pyarrow expression.

    The text is parsed, never evaluated: only the syntax nodes below are translated.

    Returns:
        The expression, and the names of its columns.

    Raises:
        InputError: if the text contains anything but comparisons of columns with values, joined by and, or,
            not.
    """
    columns: set[str] = set()
    try:
        return _expression(ast.parse(text, mode="eval").body, columns), columns
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"filter {text!r}: not a condition: {error}. Allowed: comparisons of a column with a value "
            "(== != < <= > >= in), joined by and, or, not"
        ) from error


def _expression(node: ast.expr, columns: set[str]) -> Any:
    if isinstance(node, ast.BoolOp):
        join = operator.and_ if isinstance(node.op, ast.And) else operator.or_
        parts = [_expression(part, columns) for part in node.values]
        joined = parts[0]
        for part in parts[1:]:
            joined = join(joined, part)
        return joined
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        return ~_expression(node.operand, columns)
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in COMPARISONS:
        return COMPARISONS[type(node.ops[0])](
            _column(node.left, columns), ast.literal_eval(node.comparators[0])
        )
    return _column(node, columns)


def _column(node: ast.expr, columns: set[str]) -> pc.Expression:
    if not isinstance(node, ast.Name):
        raise ValueError(f"{ast.unparse(node)!r} is not a column")
    columns.add(node.id)
    return pc.field(node.id)
