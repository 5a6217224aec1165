"""mteb's score of a local task with the encoder of boom-ray, as the pipeline measures its models."""

from typing import Any

import mteb
import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType

from boom_ray.evaluation.local_tasks import LocalTask
from boom_ray.evaluation.mteb_tasks import counts_of, local
from boom_ray.model.encoder import Encoder


class _MtebEncoder(AbsEncoder):
    """mteb's interface of an encoder; the prompt goes before texts that a task marks as queries."""

    def __init__(
        self, encoder: Encoder, query_prompt: str, max_length: int | None, chunk_tokens: int
    ) -> None:
        self.encoder, self.query_prompt = encoder, query_prompt
        self.max_length, self.chunk_tokens = max_length, chunk_tokens
        self.mteb_model_meta = ModelMeta.create_empty()

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """[n, d] float32 embeddings; see the base class."""
        prompt = self.query_prompt if prompt_type == PromptType.query else ""
        texts = [prompt + text for batch in inputs for text in batch["text"]]
        return self.encoder.encode_tokens(self.encoder.tokenize(texts, self.max_length), self.chunk_tokens)


def score(
    task: LocalTask, encoder: Encoder, query_prompt: str, max_length: int | None, chunk_tokens: int
) -> tuple[float, dict[str, int]]:
    """The main score of one task, and its `Measurement.counts`.

    Raises:
        InputError: if its files cannot be read.
    """
    adapter: Any = _MtebEncoder(encoder, query_prompt, max_length, chunk_tokens)
    (found,) = mteb.evaluate(adapter, local(task), cache=None, show_progress_bar=False).task_results
    return float(found.get_score()), counts_of(found)
