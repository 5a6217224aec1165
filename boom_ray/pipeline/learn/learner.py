"""Coefficients of a merge by gradient: InfoNCE on the pairs of a development set, through the merged model.

A step runs one batch forward and backward through the merged weights, and then streams the task vectors:
once for the gradient of the coefficients, once for the new weights (`MergedWeights`). Models of any number
need the memory of one model with its gradient, and activations of a few thousand tokens.

The loss gets a penalty, `STRENGTH` times the mean square of the relative changes (c - c⁰) / mean |c⁰| over
all coefficients: where the data do not decide, the coefficients stay what the method gives.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import count, islice

import numpy as np
import torch
from torch import Tensor

from boom_ray.data.collate import Batch
from boom_ray.merge.check_inputs import CheckedInputs
from boom_ray.merge.merged_weights import MergedWeights
from boom_ray.merge.method_coefficients import group_grams, method_coefficients
from boom_ray.model.encoder import Encoder
from boom_ray.model.tokens import Tokens
from boom_ray.pipeline.learn.pairs import DevelopmentSet
from boom_ray.recipe import Merge
from boom_ray.train.loss import contrastive_loss
from boom_ray.train.preparation import disable_dropout
from boom_ray.train.share import num_kept
from boom_ray.train.step import TrainingStep, embedder

LEARNING_RATE = 0.2  # of Adam at the start, on coefficients whose mean counts as 1
BETAS = (0.9, 0.95)  # the second forgets the steep loss of bad starts within a few steps
TEMPERATURE = 0.02
STRENGTH = 0.01
DIGITS = 6  # of the coefficients that are merged and recorded
CHUNK_TOKENS, CHUNK_TOKENS_ON_GPU = 2048, 8192  # in a forward pass: fewer do not use the processor fully
KEPT_CHUNKS = 4  # whose activations, one vector per token and layer, are kept for the backward pass

Coefficients = dict[str, list[float]]  # group of layers -> one coefficient per model


@dataclass(frozen=True)
class Learned:
    """Learned coefficients.

    Attributes:
        start: What the method gives for each group as one vector, from its Gram matrix.
        coefficients: The learned ones, or the start if these have no lower loss.
        loss_before: Mean loss over the batches of the steps, without the penalty, at the start.
        loss_after: The same with the learned coefficients.
    """

    start: Coefficients
    coefficients: Coefficients
    loss_before: float
    loss_after: float


class Learner:
    """Learns the coefficients of one merge.

    Args:
        inputs: The M models and their base model.
        settings: The method, and the weights, which give the start.
        encoder: A model of their architecture in float32, whose weights are replaced.
        development: The pairs.
        num_steps: Steps of Adam.
        learning_rate: Of the first step; it falls to 0 in a line.
    """

    def __init__(
        self,
        inputs: CheckedInputs,
        settings: Merge,
        encoder: Encoder,
        development: DevelopmentSet,
        num_steps: int,
        learning_rate: float = LEARNING_RATE,
    ) -> None:
        self.encoder, self.num_steps, self.learning_rate = encoder, num_steps, learning_rate
        _keep_few_activations(encoder)
        self.weights = MergedWeights(inputs, dict(encoder.transformer.named_parameters()))
        self.start = _start(settings, inputs, self.weights)
        epochs = (batch for number in count() for batch in development.epoch(number))
        self.batches = list(islice(epochs, num_steps))
        self.measured = self.batches[: len(development.epoch(0))]

    def run(self) -> Iterator[tuple[int, float] | Learned]:
        """Learn; yields the number and the loss of each step, and in the end the result."""
        relative = RelativeCoefficients(self.start)
        before = self.loss(self.start)
        for step, batch in enumerate(self.batches):
            loss = self._backward(batch)
            gradients = self.weights.gradients()
            self.encoder.zero_grad()
            relative.update(gradients, self.learning_rate * (1 - step / self.num_steps))
            self.set(relative.coefficients)
            yield step + 1, loss
        after = self.loss(relative.coefficients)
        found = relative.coefficients if after < before else self.start
        yield Learned(self.start, found, before, min(before, after))

    def set(self, coefficients: Coefficients) -> None:
        """Set the weights of the encoder to a merge."""
        self.weights.set({name: coefficients[group] for name, group in self.weights.groups.items()})

    def loss(self, coefficients: Coefficients) -> float:
        """Mean loss of a merge over the batches of one epoch, as far as the steps see it."""
        self.set(coefficients)
        losses = []
        for batch in self.measured:
            vectors = self.encoder.encode_tokens(self._tokens(batch), self._chunk_tokens)
            losses.append(float(contrastive_loss(torch.from_numpy(vectors), batch, TEMPERATURE)))
        return float(np.mean(losses))

    @property
    def _chunk_tokens(self) -> int:
        return CHUNK_TOKENS_ON_GPU if self.encoder.device.type == "cuda" else CHUNK_TOKENS

    def _backward(self, batch: Batch) -> float:
        """Accumulate the gradient of the loss of a batch into the parameters; returns the loss."""
        tokens, layout = self._tokens(batch), self.encoder.layout
        chunks = layout.chunks(tokens.lengths, self._chunk_tokens)
        kept = num_kept(layout.chunk_sizes(tokens.lengths, chunks), KEPT_CHUNKS * self._chunk_tokens)
        step = TrainingStep(lambda tensor: tensor, lambda scalar, is_last: scalar.backward())
        loss, _ = step(
            embedder(self.encoder, self.encoder.collate, tokens),
            np.arange(len(tokens)),
            chunks,
            min(kept, len(chunks)),
            len(tokens),
            [partial(contrastive_loss, batch=batch, temperature=TEMPERATURE)],
        )
        return float(loss)

    def _tokens(self, batch: Batch) -> Tokens:
        spec = self.encoder.spec
        texts = np.array(batch.texts, dtype=object)
        queries = self.encoder.tokenize(texts[batch.is_query].tolist(), prompt=spec.query_prompt)
        documents = self.encoder.tokenize(texts[~batch.is_query].tolist(), prompt=spec.document_prompt)
        return Tokens.concatenate([queries, documents])


def _keep_few_activations(encoder: Encoder) -> None:
    """Compute each layer again in the backward pass, from its input."""
    disable_dropout(encoder.train())
    if encoder.transformer.supports_gradient_checkpointing:
        encoder.transformer.gradient_checkpointing_enable({"use_reentrant": False})


def _start(settings: Merge, inputs: CheckedInputs, weights: MergedWeights) -> Coefficients:
    """The method's coefficients of each group as one vector; equal ones if no model changes the base."""
    found = method_coefficients(settings, inputs.models, group_grams(weights.grams()))
    equal = [1 / weights.num_models] * weights.num_models
    return {group: _rounded(values if any(values) else equal) for group, values in found.items()}


class RelativeCoefficients:
    """Coefficients as multiples of the mean of their group at the start, and their optimizer.

    They stay between 0 and the sum of all at the start: no task vector becomes longer than if the whole merge
    were made of it.

    Args:
        start: Of each group.
    """

    def __init__(self, start: Coefficients) -> None:
        self._groups = list(start)
        values = torch.tensor(list(start.values()), dtype=torch.float64)
        self._units = values.abs().mean(1, keepdim=True)
        self._start = values / self._units
        self._values = self._start.clone()
        self._optimizer = torch.optim.Adam([self._values], betas=BETAS)

    @property
    def coefficients(self) -> Coefficients:
        """Their current values, rounded."""
        values = (self._values * self._units).tolist()
        return {group: _rounded(row) for group, row in zip(self._groups, values, strict=True)}

    def update(self, gradients: dict[str, Tensor], learning_rate: float) -> None:
        """One step of Adam, from the derivatives of the loss by the coefficients of each group."""
        penalty = 2 * STRENGTH * (self._values - self._start) / self._values.numel()
        self._values.grad = torch.stack([gradients[g] for g in self._groups]) * self._units + penalty
        self._optimizer.param_groups[0]["lr"] = learning_rate
        self._optimizer.step()
        self._values.clamp_(0, self._values.shape[1])


def _rounded(values: list[float]) -> list[float]:
    return [round(value, DIGITS) for value in values]
