"""Token ids that clients send: recognized as this model's by the special tokens that its tokenizer adds.

Clients of OpenAI's API may send the ids of OpenAI's tokenizer, most of which are also ids of another model's
vocabulary. Their vectors would be of another text.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from boom_ray.model.tokenizer import added_ids
from boom_ray.serve.schema import RequestError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SEND_TEXTS = "Send texts; langchain's OpenAIEmbeddings does with check_embedding_ctx_length=False"


@dataclass(frozen=True)
class TokenFrame:
    """The special tokens of a tokenizer around the tokens of a text.

    Attributes:
        before: Ids in front of every text.
        after: Ids behind every text.
        pad: Id of the padding token.
        vocabulary: Number of token ids of the tokenizer.
        names: The tokens of `before`, the text, and the tokens of `after`, for messages.
    """

    before: list[int]
    after: list[int]
    pad: int | None
    vocabulary: int
    names: str

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase") -> "TokenFrame":
        """The frame of a tokenizer."""
        before, after = added_ids(tokenizer)
        vocabulary = max(tokenizer.get_vocab().values()) + 1
        tokens = tokenizer.convert_ids_to_tokens
        names = " ".join([*tokens(before), "…", *tokens(after)])
        return cls(before, after, tokenizer.pad_token_id, vocabulary, names)

    def check(self, index: int, ids: list[int]) -> None:
        """Refuse ids that are not a text of this model's tokenizer.

        A tokenizer that adds no token leaves no sign of itself: its ids are refused like foreign ones.

        Args:
            index: Position of the input in its request.

        Raises:
            RequestError: if an id is outside the vocabulary, a special token is missing, or padding is left.
        """
        if not all(0 <= token < self.vocabulary for token in ids):
            message = f"input {index} has a token id outside the model's vocabulary of {self.vocabulary}"
            raise RequestError(422, f"{message}. {SEND_TEXTS}", "input", "unknown_token")
        if not self.before and not self.after:
            message = "token ids are refused: the model's tokenizer adds no token that identifies them"
            raise RequestError(422, f"{message}. {SEND_TEXTS}", "input", "foreign_tokens")
        text = self.text(ids)
        if text is None:
            message = f"input {index} lacks the tokens that the model's tokenizer adds: {self.names}"
            raise RequestError(422, f"{message}. {SEND_TEXTS}", "input", "foreign_tokens")
        if text and self.pad in (text[0], text[-1]):
            message = f"input {index} is padded with token {self.pad}; send each list at its own length"
            raise RequestError(422, message, "input", "padded_tokens")

    def text(self, ids: list[int]) -> list[int] | None:
        """The ids between the special tokens, or None if those are missing."""
        start, end = len(self.before), len(ids) - len(self.after)
        if end < start or ids[:start] != self.before or ids[end:] != self.after:
            return None
        return ids[start:end]
