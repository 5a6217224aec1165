"""Decisions and failures that all ranks of a bag share, so that none waits for another in a collective."""

import datetime
import functools
import uuid
from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch.distributed as dist

from boom_ray.errors import BoomError

T = TypeVar("T")
LONGEST_UPLOAD = datetime.timedelta(days=1)  # lost ranks are noticed in the collectives of training


def on_all_ranks(function: Callable[[], T]) -> T:
    """Call a function on every rank; if it fails on any rank, all ranks raise the error of the first of them.

    Raises:
        BoomError: as the function does, on any rank.
    """
    error: BoomError | None = None
    try:
        result = function()
    except BoomError as raised:
        error = raised
    errors: list[BoomError | None] = [None] * dist.get_world_size()
    dist.all_gather_object(errors, error)
    for failure in errors:
        if failure is not None:
            raise failure
    return result


def from_all_ranks(function: Callable[[], T]) -> list[T]:
    """Call a function on every rank, and return the results of all ranks, in order, on each.

    Raises:
        BoomError: as the function does, on any rank.
    """
    return _gathered(on_all_ranks(function))


def from_first_rank(function: Callable[[], T]) -> T:
    """Call a function on rank 0 only, and return its result on all ranks.

    Raises:
        BoomError: as the function does, on all ranks.
    """
    results = [on_all_ranks(lambda: function() if dist.get_rank() == 0 else None)]
    dist.broadcast_object_list(results)
    return cast(T, results[0])


def new_attempt_id() -> str:
    """A random identifier of this attempt of the bag, equal on all ranks."""
    return from_first_rank(lambda: uuid.uuid4().hex[:8])


def gather_while_training() -> Callable[[T], list[T]]:
    """A function that returns the values of all ranks, and that a second thread can call while training runs.

    Runs on every rank. Collectives of one process group must have one order, so it has a group of its own,
    which needs no GPU.
    """
    group = _second_group()
    return lambda own: _gathered(own, group)


@functools.cache
def _second_group() -> Any:
    return dist.new_group(backend="gloo", timeout=LONGEST_UPLOAD)


def _gathered(own: T, group: Any = None) -> list[T]:
    everyone: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(everyone, own, group=group)
    return everyone
