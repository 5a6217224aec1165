"""Local tasks measured with a merged model at several scales, of which none is published."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from boom_ray import artifacts, storage
from boom_ray.evaluation.local_run import LocalEvaluationTask
from boom_ray.evaluation.measure import measure
from boom_ray.evaluation.protocol import EvaluationProtocol, EvaluationTask, Measurement, Subject
from boom_ray.model import directory

if TYPE_CHECKING:
    from boom_ray.model.scaled import ScaledEncoder


@dataclass(frozen=True)
class ScaledTask(EvaluationTask[Measurement]):
    """A local task with the weights base + scale * (subject - base).

    Attributes:
        task: The task.
        base: URI of the base model.
        base_digest: Identity of its content.
    """

    task: LocalEvaluationTask
    base: str
    base_digest: str
    scale: float

    def load(self, subject: Subject, protocol: EvaluationProtocol) -> "ScaledEncoder":
        """See `EvaluationTask.load`; for all scales."""
        from boom_ray.model.scaled import ScaledEncoder

        merged, base = (storage.local_directory(uri) for uri in (subject.uri, self.base))
        return ScaledEncoder(merged, base, protocol.device, subject.source)

    def run(
        self,
        model: "ScaledEncoder",
        subject: Subject,
        protocol: EvaluationProtocol,
        partial: Measurement | None,
    ) -> Measurement:
        """See `EvaluationTask.run`."""
        return self.task.run(model.at(self.scale), subject, protocol, partial)

    def measurement(self, result: Measurement) -> Measurement:
        """See `EvaluationTask.measurement`."""
        return result

    def is_complete(self, result: Measurement) -> bool:
        """See `EvaluationTask.is_complete`."""
        return True

    def read_result(self, cache: str, subject: Subject, protocol: EvaluationProtocol) -> Measurement | None:
        """See `EvaluationTask.read_result`."""
        return self.task.read_result(cache, self._scaled(subject), protocol)

    def write_result(
        self, cache: str, subject: Subject, protocol: EvaluationProtocol, result: Measurement
    ) -> None:
        """See `EvaluationTask.write_result`."""
        self.task.write_result(cache, self._scaled(subject), protocol, result)

    def _scaled(self, subject: Subject) -> Subject:
        """The subject with the identity of its weights at this scale."""
        digest = artifacts.fingerprint([subject.digest, self.base_digest, self.scale])
        return replace(subject, digest=digest)


def measure_scales(
    subjects: Sequence[Subject],
    base: str,
    scales: Sequence[float],
    tasks: Sequence[LocalEvaluationTask],
    protocol: EvaluationProtocol,
    cache: str | None = None,
) -> dict[tuple[str, float], dict[str, Measurement]]:
    """Measure merged models at several scales; each process loads a model and the base once for all scales.

    Args:
        subjects: Merged models of scale 1.
        base: URI of the model of scale 0.
        cache: See `measure`.

    Returns:
        (label, scale) -> task -> measurement.

    Raises:
        BoomError: if a model or a task cannot be read.
    """
    digest = directory.identify(base).digest
    names = {(task.name, scale): f"{task.name} x{scale:g}" for scale in scales for task in tasks}
    scaled = [
        ScaledTask(names[task.name, scale], task, base, digest, scale) for scale in scales for task in tasks
    ]
    return {
        (label, scale): {task.name: found[names[task.name, scale]] for task in tasks}
        for label, found in measure(subjects, scaled, protocol, cache).items()
        for scale in scales
    }
