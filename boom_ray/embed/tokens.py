"""Texts of which a tokenizer makes no tokens, and which therefore have no vector."""

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from boom_ray import storage

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@cache
def tokenizer_of(local: str) -> "PreTrainedTokenizerBase":
    """The tokenizer of a local model directory. Ray Data reuses its processes: each loads it once."""
    from boom_ray.model import directory, tokenizer

    return tokenizer.load(local, directory.read_spec(local))


@dataclass(frozen=True)
class TokenCheck:
    """Finds texts without tokens.

    Attributes:
        model: URI of the model directory.
        prompt: Text before every input.
    """

    model: str
    prompt: str

    @classmethod
    def of(cls, model: str, prompt: str) -> "TokenCheck | None":
        """The check for a model; None if each of its texts has tokens: of the prompt, or special ones."""
        check = cls(model, prompt)
        return check if check.lacking([""])[0] else None

    def lacking(self, texts: list[str]) -> list[bool]:
        """Whether each text has no tokens."""
        from boom_ray.model.tokenizer import encode

        tokenizer = tokenizer_of(storage.local_directory(self.model))
        lacking = encode(tokenizer, list(map(self.prompt.__add__, texts)), None).lengths == 0
        found: list[bool] = lacking.tolist()
        return found
