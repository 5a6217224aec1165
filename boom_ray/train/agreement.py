"""Decisions and failures that all ranks of a bag share, so that none waits for another in a collective."""

import uuid
from collections.abc import Callable
from typing import TypeVar, cast

import torch.distributed as dist

from boom_ray.errors import BoomError

T = TypeVar("T")


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
