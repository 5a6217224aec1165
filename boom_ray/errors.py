"""The one exception a user is meant to see."""


class BoomError(ValueError):
    """Something the user can put right: the message says what, what was got, what is allowed, what to do."""

    @classmethod
    def of(cls, problems: list[str], heading: str) -> "BoomError":
        """One error that lists every problem found, so that a user fixes them in one round."""
        return cls("\n".join([heading, *(f"  - {problem}" for problem in problems)]))
