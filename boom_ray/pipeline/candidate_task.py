"""Local tasks measured with candidates of a merge, whose weights are combined in memory."""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boom_ray import storage
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.evaluation.variant_task import VariantTask
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.merge.driver import readable
from boom_ray.merge.merge_job import GramMatrix

if TYPE_CHECKING:
    from boom_ray.model.encoder import Encoder

Coefficients = Mapping[str, Sequence[float]]  # tensor -> one per model


@dataclass(frozen=True)
class CandidateTask(VariantTask):
    """A local task with a combination of models.

    Attributes:
        models: URIs of the M models, whose identity is that of the subject.
        base: URI of the base model, if task vectors are combined.
        coefficients: Of each tensor.
    """

    models: Sequence[str]
    base: str | None
    coefficients: Coefficients

    @property
    def identity(self) -> list[Any]:
        """See `VariantTask.identity`."""
        return [self.coefficients]

    def load(self, subject: Subject, protocol: EvaluationProtocol) -> "CombinedEncoder":
        """See `EvaluationTask.load`."""
        return CombinedEncoder(self.models, self.base, protocol.device)

    def encoder(self, model: "CombinedEncoder") -> "Encoder":
        """See `VariantTask.encoder`."""
        return model.at(self.coefficients)


class CombinedEncoder:
    """An encoder for inference with the weights of any combination of models.

    The host has the weights twice, once of them in float32; the models are streamed from their files.
    """

    def __init__(self, models: Sequence[str], base: str | None, device: str) -> None:
        """Load the encoder; models of an object store are copied first.

        Args:
            models: URIs.
            base: URI of the base model, if task vectors are combined.
            device: `cuda` or `cpu`; see `inference.precision`.

        Raises:
            InputError: if the models cannot be merged or loaded.
        """
        import torch

        from boom_ray.merge.merged_weights import MergedWeights
        from boom_ray.model import inference
        from boom_ray.model.adapted import load_adapted

        inputs = check_inputs(
            [storage.local_directory(uri) for uri in models], base and storage.local_directory(base)
        )
        local = storage.local_directory(inputs.directory)
        self._encoder = inference.load(local, device)
        self.parameters = dict(load_adapted(local, torch.float32, "auto").named_parameters())
        self._weights = MergedWeights(inputs, self.parameters)
        self._current: Coefficients | None = None

    def at(self, coefficients: Coefficients) -> "Encoder":
        """The encoder with the weights of a combination; until the next call with another one.

        Args:
            coefficients: Of each tensor.
        """
        import torch

        from boom_ray.model.packed_weights import assign

        if coefficients != self._current:
            self._weights.set(coefficients)
            with torch.no_grad():
                for name, value in self.parameters.items():
                    assign(self._encoder.transformer, name, value)
            self._current = coefficients
        return self._encoder


def tensor_grams(models: list[str], base: str | None) -> dict[str, GramMatrix]:
    """The Gram matrix of every tensor that can be combined. Reads all models; runs on a worker.

    Raises:
        InputError: if the models cannot be merged, or have NaN or Inf.
    """
    from boom_ray.merge.merged_weights import MergedWeights

    inputs = check_inputs([readable(uri) for uri in models], base and readable(base))
    with closing(MergedWeights(inputs, {})) as weights:
        return weights.grams()
