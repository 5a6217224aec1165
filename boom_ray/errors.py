"""The errors a user is meant to see.

```
BoomError (ValueError)
├── InputError     an argument, recipe, file, row or model is not what it must be
├── ConflictError  the storage holds something that was made from another input, or is in use
├── NotFoundError  a run, model, file or column that was named does not exist
├── StorageError   a store cannot be reached, refuses access, is full, or holds damaged files
└── ClusterError   Ray cannot be reached, has too little capacity, or lost a process
```

A message states what is wrong, what was found, what is allowed and what to do. Any other exception is a
defect of boom-ray.
"""

from typing import TypeVar

E = TypeVar("E", bound="BoomError")


class BoomError(ValueError):
    """An error that the user can fix; the message contains the remedy."""

    @classmethod
    def of(cls: type[E], problems: list[str], heading: str) -> E:
        """One error that lists every problem found, so that a user fixes them in one round."""
        return cls("\n".join([heading, *(f"  - {problem}" for problem in problems)]))


class InputError(BoomError):
    """An argument, a recipe, a file, a row or a model is not what it must be."""


class ConflictError(BoomError):
    """The storage holds something made from another input, or another process uses it."""


class NotFoundError(BoomError):
    """A run, a model, a file or a column that was named does not exist."""


class StorageError(BoomError):
    """A store cannot be reached, refuses access, is full, or holds damaged files."""


class ClusterError(BoomError):
    """Ray cannot be reached, has too little capacity for what was requested, or lost a process."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's message, or its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
