"""mteb's score of a local task with the encoder of boom-ray, as the pipeline measures its models."""

from typing import Any

import mteb
import numpy as np
from mteb.models import ModelMeta
from mteb.models.abs_encoder import AbsEncoder
from mteb.types import PromptType

from boom_ray.evaluation.local_tasks import LocalTask
from boom_ray.evaluation.mteb_tasks import counts_of, local
from boom_ray.evaluation.protocol import EvaluationProtocol
from boom_ray.model.encoder import Encoder


class _MtebEncoder(AbsEncoder):
    """mteb's interface of an encoder.

    The protocol's prompts go before texts that a task marks as queries or documents, and the model's default
    prompt, if it has one, before texts of which a task says nothing.
    """

    def __init__(self, encoder: Encoder, protocol: EvaluationProtocol) -> None:
        self.encoder, self.protocol = encoder, protocol
        self.prompts = {
            PromptType.query: protocol.query_prompt or "",
            PromptType.document: protocol.document_prompt or "",
        }
        self.mteb_model_meta = ModelMeta.create_empty()

    def encode(self, inputs: Any, *, prompt_type: PromptType | None = None, **_: Any) -> np.ndarray:
        """[n, d] float32 embeddings; see the base class."""
        prompt = self.prompts[prompt_type] if prompt_type else self.encoder.spec.default_prompt
        texts = [text for batch in inputs for text in batch["text"]]
        tokens = self.encoder.tokenize(texts, self.protocol.max_length, prompt)
        return self.encoder.encode_tokens(tokens)


def score(task: LocalTask, encoder: Encoder, protocol: EvaluationProtocol) -> tuple[float, dict[str, int]]:
    """The main score of one task, and its `Measurement.counts`.

    Args:
        protocol: With prompts.

    Raises:
        InputError: if its files cannot be read.
    """
    adapter: Any = _MtebEncoder(encoder, protocol)
    (found,) = mteb.evaluate(adapter, local(task), cache=None, show_progress_bar=False).task_results
    return float(found.get_score()), counts_of(found)
