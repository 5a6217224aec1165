"""A local task, measured with the encoder of boom-ray; its results are JSON files, one per measurement."""

import json
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, cast

from boom_ray import artifacts, storage
from boom_ray.evaluation.local_tasks import MAIN_METRICS, LocalTask
from boom_ray.evaluation.protocol import EvaluationProtocol, EvaluationTask, Measurement, Subject

if TYPE_CHECKING:
    from boom_ray.model.encoder import Encoder

RETRIEVAL_METRICS = ("ndcg@10", "mrr@10", "recall@100")


@dataclass(frozen=True)
class LocalEvaluationTask(EvaluationTask[Measurement]):
    """A directory with a task.

    Retrieval reports `RETRIEVAL_METRICS` by the evaluator of sentence-transformers, other types their main
    score by mteb.
    """

    task: LocalTask

    def load(self, subject: Subject, protocol: EvaluationProtocol) -> "Encoder":
        """See `EvaluationTask.load`."""
        from boom_ray.model import inference

        return inference.load(storage.local_directory(subject.uri), protocol.device, subject.source)

    def run(
        self, model: "Encoder", subject: Subject, protocol: EvaluationProtocol, partial: Measurement | None
    ) -> Measurement:
        """See `EvaluationTask.run`; a stored measurement is always complete."""
        protocol = _with_prompts_of(model, protocol)
        if self.task.type == "Retrieval":
            return _search(self.task, model, protocol)
        # Imported here because mteb is an optional dependency and slow to import.
        from boom_ray.evaluation.mteb_local import score

        value, counts = score(self.task, model, protocol)
        return Measurement({MAIN_METRICS[self.task.type]: value}, {}, counts)

    def measurement(self, result: Measurement) -> Measurement:
        """See `EvaluationTask.measurement`."""
        return result

    def is_complete(self, result: Measurement) -> bool:
        """See `EvaluationTask.is_complete`."""
        return True

    def read_result(self, cache: str, subject: Subject, protocol: EvaluationProtocol) -> Measurement | None:
        """See `EvaluationTask.read_result`."""
        path = self._path(cache, subject, protocol)
        return Measurement(**json.loads(storage.read_bytes(path))) if storage.is_file(path) else None

    def write_result(
        self, cache: str, subject: Subject, protocol: EvaluationProtocol, result: Measurement
    ) -> None:
        """See `EvaluationTask.write_result`."""
        storage.write_bytes(self._path(cache, subject, protocol), json.dumps(asdict(result)).encode())

    def _path(self, cache: str, subject: Subject, protocol: EvaluationProtocol) -> str:
        """URI of the result file; its name is a fingerprint of everything that the scores depend on.

        `execution` changes scores by rounding only and is left out.
        """
        settings: list[Any] = [protocol.query_prompt, protocol.max_length]
        if protocol.document_prompt is not None:
            settings.append({"document_prompt": protocol.document_prompt})
        key = artifacts.fingerprint([subject.digest, self.task.revision, *settings])
        return storage.join(cache, f"{key}.json")


def _with_prompts_of(encoder: "Encoder", protocol: EvaluationProtocol) -> EvaluationProtocol:
    """The protocol with the model's own prompts where it has none."""
    query, document = protocol.query_prompt, protocol.document_prompt
    return replace(
        protocol,
        query_prompt=encoder.spec.query_prompt if query is None else query,
        document_prompt=encoder.spec.document_prompt if document is None else document,
    )


def _search(task: LocalTask, encoder: "Encoder", protocol: EvaluationProtocol) -> Measurement:
    from boom_ray.evaluation.retrieval import RetrievalEvaluator

    evaluator = RetrievalEvaluator(
        task.uri,
        protocol.max_length,
        query_prompt=protocol.query_prompt,
        corpus_prompt=protocol.document_prompt,
    )
    scores: Any = evaluator.compute_all_metrics(cast(Any, encoder))["cosine"]
    means = {
        name: float(scores[f"{metric}@k"][int(k)])
        for name in RETRIEVAL_METRICS
        for metric, k in [name.split("@")]
    }
    return Measurement(means, evaluator.ndcg_of_queries, evaluator.counts)
