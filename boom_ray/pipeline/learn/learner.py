"""Coefficients of a merge by gradient: InfoNCE on the pairs of a development set, through the merged model.

A step runs one batch forward and backward through the merged weights, and then, group by group, streams the
task vectors: once for the gradient of the group's coefficients, once for its new weights (`MergedWeights`).
Models of any number need the memory of one model with its gradient.

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
from boom_ray.errors import InputError
from boom_ray.merge.check_inputs import CheckedInputs
from boom_ray.merge.merged_weights import MergedWeights
from boom_ray.merge.methods import DirectionsCancel, coefficients_of
from boom_ray.merge.settings import resolve_weights
from boom_ray.model.encoder import Encoder
from boom_ray.model.tensor_names import plain_names
from boom_ray.model.tokens import Tokens
from boom_ray.pipeline.learn.pairs import DevelopmentSet
from boom_ray.recipe import Merge
from boom_ray.train.loss import contrastive_loss
from boom_ray.train.share import num_kept
from boom_ray.train.step import TrainingStep, embedder

LEARNING_RATE = 0.1  # of Adam at the start, on coefficients whose mean counts as 1
TEMPERATURE = 0.02
STRENGTH = 0.01
DIGITS = 6  # of the coefficients that are merged and recorded

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
        parameters = dict(encoder.transformer.named_parameters())
        self.encoder, self.num_steps, self.learning_rate = encoder, num_steps, learning_rate
        plain = plain_names(parameters)
        self.weights = MergedWeights(inputs, dict(zip(plain, parameters.values(), strict=True)))
        self.start = {group: self._start(group, inputs, settings) for group in self.weights.groups}
        epochs = (batch for number in count() for batch in development.epoch(number))
        self.batches = list(islice(epochs, num_steps))
        self.measured = self.batches[: len(development.epoch(0))]

    def run(self) -> Iterator[tuple[int, float] | Learned]:
        """Learn; yields the number and the loss of each step, and in the end the result."""
        relative = {group: _relative(start) for group, start in self.start.items()}
        optimizers = {group: torch.optim.Adam([x]) for group, x in relative.items()}
        self._set(self.start)
        before = self._loss()
        for step, batch in enumerate(self.batches):
            loss = self._backward(batch)
            for group, optimizer in optimizers.items():
                optimizer.param_groups[0]["lr"] = self.learning_rate * (1 - step / self.num_steps)
                self._update(group, relative[group], optimizer)
                self.weights.set(group, _absolute(relative[group], self.start[group]))
            self.encoder.zero_grad()
            yield step + 1, loss
        learned = {group: _absolute(relative[group], start) for group, start in self.start.items()}
        self._set(learned)
        after = self._loss()
        yield Learned(self.start, learned if after < before else self.start, before, min(before, after))

    def _start(self, group: str, inputs: CheckedInputs, settings: Merge) -> list[float]:
        """The method's coefficients of a group as one vector; equal ones if no model changes the base."""
        weights = resolve_weights(inputs.models, settings)
        assert isinstance(weights, list)
        products = self.weights.gram(group).numpy()
        try:
            found = coefficients_of(settings, np.array(weights), products)
        except DirectionsCancel:
            raise InputError(
                f"{group}: the models point in opposite directions that cancel. Use method linear"
            ) from None
        return _rounded(found if found.any() else np.full(len(weights), 1 / len(weights)))

    def _set(self, coefficients: Coefficients) -> None:
        for group, values in coefficients.items():
            self.weights.set(group, values)

    def _update(self, group: str, relative: Tensor, optimizer: torch.optim.Adam) -> None:
        """One step of Adam on the relative coefficients of a group, which stay between 0 and the sum of all
        at the start: no task vector becomes longer than if the whole merge were made of it."""
        start = _relative(self.start[group])
        penalty = 2 * STRENGTH * (relative - start) / (len(start) * len(self.start))
        relative.grad = self.weights.gradient(group) * _unit(self.start[group]) + penalty
        optimizer.step()
        relative.clamp_(0, float(start.abs().sum()))

    def _backward(self, batch: Batch) -> float:
        """Accumulate the gradient of the loss of a batch into the parameters; returns the loss."""
        tokens, layout = self._tokens(batch), self.encoder.layout
        chunks = layout.chunks(tokens.lengths, self.encoder.chunk_tokens)
        kept = num_kept(layout.chunk_sizes(tokens.lengths, chunks), self.encoder.chunk_tokens)
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

    def _loss(self) -> float:
        """Mean loss over the batches of one epoch, as far as the steps see it."""
        losses = []
        for batch in self.measured:
            embeddings = torch.from_numpy(self.encoder.encode_tokens(self._tokens(batch)))
            losses.append(float(contrastive_loss(embeddings, batch, TEMPERATURE)))
        return float(np.mean(losses))

    def _tokens(self, batch: Batch) -> Tokens:
        spec = self.encoder.spec
        texts = np.array(batch.texts, dtype=object)
        queries = self.encoder.tokenize(texts[batch.is_query].tolist(), prompt=spec.query_prompt)
        documents = self.encoder.tokenize(texts[~batch.is_query].tolist(), prompt=spec.document_prompt)
        return Tokens.concatenate([queries, documents])


def _unit(start: list[float]) -> float:
    """The coefficient that counts as 1: the mean of the start."""
    return float(np.mean(np.abs(start)))


def _relative(start: list[float]) -> Tensor:
    return torch.tensor(start, dtype=torch.float64) / _unit(start)


def _absolute(relative: Tensor, start: list[float]) -> list[float]:
    return _rounded(relative.numpy() * _unit(start))


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), DIGITS) for value in values]
