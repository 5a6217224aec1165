"""Failures of a rank that last: every attempt would meet them, so that a retry only costs time."""

import contextlib
import re
from collections.abc import Iterator

from boom_ray.errors import BoomError, InputError, first_line

LASTING = (ArithmeticError, AttributeError, ImportError, LookupError, NameError, TypeError, ValueError)
# torch raises RuntimeError for shapes and dtypes, and also for lost peers and devices, which are retried.
SHAPE = re.compile(r"\b(shapes?|sizes?|dimensions?) |\bsize mismatch|must match|out of range in self")
DTYPE = re.compile(r"\bdtypes?\b|not implemented for|same type|Half|BFloat16")
LENGTHS = "train.query_max_length, train.passage_max_length or base_model.path"


@contextlib.contextmanager
def without_retry(base: str) -> Iterator[None]:
    """Raise failures that last as an `InputError`, which ends the bag, and all others unchanged.

    Args:
        base: The base model, as the recipe names it.

    Raises:
        InputError: naming the key to change.
    """
    try:
        yield
    except BoomError:
        raise
    except Exception as error:
        remedy = _remedy(error)
        if remedy is None:
            raise
        raise InputError(
            f"{base}: training failed: {type(error).__name__}: {first_line(error)}. {remedy}"
        ) from error


def _remedy(error: Exception) -> str | None:
    """What to change, or None if another attempt may succeed."""
    message = str(error)
    by_shape = type(error) is RuntimeError and SHAPE.search(message)
    if by_shape or (isinstance(error, IndexError) and SHAPE.search(message)):
        return f"A text or a weight has another length than the model: change {LENGTHS}"
    if isinstance(error, NotImplementedError) or (type(error) is RuntimeError and DTYPE.search(message)):
        return "The device lacks this operation: change train.precision or train.execution.attention"
    if isinstance(error, ImportError):
        return "Install it on every node"
    if isinstance(error, LASTING):
        return "Every attempt would fail alike: change base_model.path or train in the recipe"
    return None
