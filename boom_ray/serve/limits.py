"""Limits on the load of an endpoint, all derived from one setting: tokens in one forward pass."""

from dataclasses import dataclass

MAX_QUEUED_PASSES = 16  # an accepted request waits for at most so many
MIN_INPUT_TOKENS = 4  # start, one word, end, and a margin
MAX_INPUTS = 2048  # as OpenAI's API
MAX_HELD_BODIES = 16  # of the maximum size
BYTES_PER_TOKEN = 16  # generous: most languages need 3 to 6, and JSON may escape


@dataclass(frozen=True)
class Limits:
    """Limits on the load of an endpoint.

    Attributes:
        pass_tokens: Tokens in one forward pass of an encoder.
        max_length: Maximum tokens of an input of any served model.
        num_encoders: Encoders that share the load of one model.
    """

    pass_tokens: int
    max_length: int
    num_encoders: int = 1

    @property
    def waiting_tokens(self) -> int:
        """Maximum tokens that are accepted and not yet answered; beyond it, requests get status 429."""
        return self.pass_tokens * MAX_QUEUED_PASSES * self.num_encoders

    @property
    def ongoing_requests(self) -> int:
        """Maximum concurrent requests: as many of minimum length as the waiting tokens allow."""
        return max(64, self.waiting_tokens // MIN_INPUT_TOKENS)

    @property
    def ongoing_calls(self) -> int:
        """Maximum concurrent calls of encoders: each computes one while the next waits."""
        return 2 * self.num_encoders

    @property
    def body_bytes(self) -> int:
        """Maximum size of a body: the maximum number of inputs of maximum length, or a hundred passes."""
        return min(MAX_INPUTS * self.max_length, 100 * self.pass_tokens) * BYTES_PER_TOKEN

    @property
    def held_bytes(self) -> int:
        """Maximum size of all bodies that are not yet answered."""
        return MAX_HELD_BODIES * self.body_bytes
