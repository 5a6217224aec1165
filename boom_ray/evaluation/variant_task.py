"""Local tasks measured with variants of weights that are computed in memory, of which none is published."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from boom_ray import artifacts
from boom_ray.evaluation.local_run import LocalEvaluationTask
from boom_ray.evaluation.measure import measure
from boom_ray.evaluation.protocol import EvaluationProtocol, EvaluationTask, Measurement, Subject

if TYPE_CHECKING:
    from boom_ray.model.encoder import Encoder


@dataclass(frozen=True)
class VariantTask(EvaluationTask[Measurement]):
    """A local task with one variant of the weights; `load` is for all variants.

    Attributes:
        task: The task.
    """

    task: LocalEvaluationTask

    @property
    @abstractmethod
    def identity(self) -> list[Any]:
        """What the variant depends on besides the subject."""

    @abstractmethod
    def encoder(self, model: Any) -> "Encoder":
        """The variant, until the next call; `model` is what `load` returned."""

    def run(
        self, model: Any, subject: Subject, protocol: EvaluationProtocol, partial: Measurement | None
    ) -> Measurement:
        """See `EvaluationTask.run`."""
        return self.task.run(self.encoder(model), subject, protocol, partial)

    def measurement(self, result: Measurement) -> Measurement:
        """See `EvaluationTask.measurement`."""
        return result

    def is_complete(self, result: Measurement) -> bool:
        """See `EvaluationTask.is_complete`."""
        return True

    def read_result(self, cache: str, subject: Subject, protocol: EvaluationProtocol) -> Measurement | None:
        """See `EvaluationTask.read_result`."""
        return self.task.read_result(cache, self._identified(subject), protocol)

    def write_result(
        self, cache: str, subject: Subject, protocol: EvaluationProtocol, result: Measurement
    ) -> None:
        """See `EvaluationTask.write_result`."""
        self.task.write_result(cache, self._identified(subject), protocol, result)

    def _identified(self, subject: Subject) -> Subject:
        return replace(subject, digest=artifacts.fingerprint([subject.digest, *self.identity]))


def measure_variants(
    subject: Subject,
    variants: Mapping[str, Sequence[VariantTask]],
    protocol: EvaluationProtocol,
    cache: str | None = None,
) -> dict[str, dict[str, Measurement]]:
    """Measure variants of a model; each process loads it once for all.

    Args:
        variants: Tasks of each, with names that differ.
        cache: See `measure`.

    Returns:
        Variant -> task -> measurement.

    Raises:
        BoomError: if a model or a task cannot be read.
    """
    tasks = [task for own in variants.values() for task in own]
    found = measure([subject], tasks, protocol, cache)[subject.label]
    return {label: {task.task.name: found[task.name] for task in own} for label, own in variants.items()}
