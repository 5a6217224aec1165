"""Local tasks measured with a merged model at several scales."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from boom_ray import storage
from boom_ray.evaluation.local_run import LocalEvaluationTask
from boom_ray.evaluation.protocol import EvaluationProtocol, Measurement, Subject
from boom_ray.evaluation.variant_task import VariantTask, measure_variants
from boom_ray.model import directory

if TYPE_CHECKING:
    from boom_ray.model.encoder import Encoder
    from boom_ray.model.scaled import ScaledEncoder


@dataclass(frozen=True)
class ScaledTask(VariantTask):
    """A local task with the weights base + scale * (subject - base).

    Attributes:
        base: URI of the base model.
        base_digest: Identity of its content.
    """

    base: str
    base_digest: str
    scale: float

    @property
    def identity(self) -> list[Any]:
        """See `VariantTask.identity`."""
        return [self.base_digest, self.scale]

    def load(self, subject: Subject, protocol: EvaluationProtocol) -> "ScaledEncoder":
        """See `EvaluationTask.load`."""
        from boom_ray.model.scaled import ScaledEncoder

        merged, base = (storage.local_directory(uri) for uri in (subject.uri, self.base))
        return ScaledEncoder(merged, base, protocol.device, subject.source)

    def encoder(self, model: "ScaledEncoder") -> "Encoder":
        """See `VariantTask.encoder`."""
        return model.at(self.scale)


def measure_scales(
    subject: Subject,
    base: str,
    scales: dict[str, float],
    tasks: Sequence[LocalEvaluationTask],
    protocol: EvaluationProtocol,
    cache: str | None = None,
) -> dict[str, dict[str, Measurement]]:
    """Measure a merged model at several scales.

    Args:
        subject: The merge at scale 1.
        base: URI of the model of scale 0.
        scales: Each by its label.
        cache: See `measure`.

    Returns:
        Label -> task -> measurement.

    Raises:
        BoomError: if a model or a task cannot be read.
    """
    digest = directory.identify(base).digest
    variants = {
        label: [ScaledTask(f"{task.name} x{scale:g}", task, base, digest, scale) for task in tasks]
        for label, scale in scales.items()
    }
    return measure_variants(subject, variants, protocol, cache)
