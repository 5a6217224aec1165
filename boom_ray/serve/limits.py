"""What bounds the load of an endpoint, all of it derived from one setting: tokens in one forward pass."""

from dataclasses import dataclass

QUEUED_PASSES = 16  # a request that is accepted waits for no more of them
LEAST_TOKENS = 4  # of an input: start, word, end and some air
MAX_INPUTS = 2048
HELD_BODIES = 16  # of the longest that are allowed
BYTES_PER_TOKEN = 16  # generous: most languages need 3 to 6, and JSON may escape


@dataclass(frozen=True)
class Limits:
    """How much an endpoint takes on.

    Attributes:
        pass_tokens: Tokens in one forward pass of an encoder.
        max_length: Longest input of any served model, in tokens.
        num_encoders: Encoders that share the load of one model.
    """

    pass_tokens: int
    max_length: int
    num_encoders: int = 1

    @property
    def waiting_tokens(self) -> int:
        """Tokens accepted and not answered; beyond, clients are told to come back."""
        return self.pass_tokens * QUEUED_PASSES * self.num_encoders

    @property
    def ongoing_requests(self) -> int:
        """Requests under way at most, were they all as short as can be."""
        return max(64, self.waiting_tokens // LEAST_TOKENS)

    @property
    def ongoing_calls(self) -> int:
        """Calls of encoders under way at once: one that is computed and one that waits at each."""
        return 2 * self.num_encoders

    @property
    def body_bytes(self) -> int:
        """Longest body: as many inputs as are allowed, but no more than a hundred passes."""
        return min(MAX_INPUTS * self.max_length, 100 * self.pass_tokens) * BYTES_PER_TOKEN

    @property
    def held_bytes(self) -> int:
        """Bytes of all bodies that are not answered yet."""
        return HELD_BODIES * self.body_bytes
