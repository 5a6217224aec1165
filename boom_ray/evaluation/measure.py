"""Evaluation: nDCG@10, MRR@10 and recall@100 on BEIR directories, with the evaluator of
sentence-transformers; and the main score of local tasks of other types, with mteb.

A directory is searched for tasks (`local_tasks`); the folders a task lies in are its group, and every group
has a mean: `in_domain/numpy` and `out_of_domain/scipy` give two.
"""

import importlib.util
import json
from dataclasses import asdict, dataclass
from typing import Any, cast

import ray

from boom_ray import artifacts, storage
from boom_ray.errors import BoomError
from boom_ray.evaluation import local_tasks
from boom_ray.evaluation.local_tasks import LocalTask
from boom_ray.model import directory
from boom_ray.model.encoder import Encoder
from boom_ray.recipe import BaseModelSource
from boom_ray.runtime.cluster import result_of
from boom_ray.runtime.progress import Progress

METRICS = ("ndcg@10", "mrr@10", "recall@100")
Scores = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Subject:
    """A model to measure.

    Attributes:
        label: What tables call it.
        uri: Its directory.
        source: How to read a base model that does not say how it pools.
        digest: Identity of its content, if known.
    """

    label: str
    uri: str
    source: BaseModelSource | None = None
    digest: str | None = None


@dataclass(frozen=True)
class Protocol:
    """How all models are measured.

    Attributes:
        data: Directory of tasks.
        query_prompt: Text before every query; None for each model's own `query` prompt.
        max_length: Tokens after which texts are cut; None for each model's own.
        chunk_tokens: Padded tokens in one forward pass.
    """

    data: str
    query_prompt: str | None = None
    max_length: int | None = None
    chunk_tokens: int = 4096


@dataclass(frozen=True)
class Measurement:
    """One model on one task.

    Attributes:
        scores: The main score first: of retrieval the means over the queries of each of `METRICS`.
        queries: nDCG@10 of each query, by its id; empty for tasks that are not made of queries.
    """

    scores: dict[str, float]
    queries: dict[str, float]


def find_tasks(data: str) -> dict[str, LocalTask]:
    """Every task at or below `data`, by its path relative to it.

    Raises:
        BoomError: if there is none, or mteb is needed for one and is not installed.
    """
    found = {task.name: task for task in local_tasks.find(data)}
    others = [task.name for task in found.values() if task.type != "Retrieval"]
    if others and importlib.util.find_spec("mteb") is None:
        raise BoomError(
            f"{data}: {', '.join(others)}: measured by mteb, which is not installed. Run here and on the "
            "cluster's nodes: pip install 'boom-ray[mteb]'"
        )
    return found


@ray.remote(num_cpus=1)
def _score(subject: Subject, protocol: Protocol, task: LocalTask) -> Measurement:
    encoder = directory.load_encoder(storage.local_directory(subject.uri), subject.source).for_inference()
    prompt = protocol.query_prompt
    prompt = encoder.spec.prompts.get("query", "") if prompt is None else prompt
    if task.type == "Retrieval":
        return _search(encoder, prompt, protocol, task)
    from boom_ray.evaluation.mteb_local import score  # brings mteb, which few workers need

    found = score(task, encoder, prompt, protocol.max_length, protocol.chunk_tokens)
    return Measurement({local_tasks.METRICS[task.type]: found}, {})


def _search(encoder: Encoder, prompt: str, protocol: Protocol, task: LocalTask) -> Measurement:
    from boom_ray.evaluation.retrieval import RetrievalEvaluator

    evaluator = RetrievalEvaluator(task.uri, protocol.max_length, protocol.chunk_tokens, query_prompt=prompt)
    scores: Any = evaluator.compute_all_metrics(cast(Any, encoder))["cosine"]
    means = {name: float(scores[f"{kind}@k"][int(k)]) for name in METRICS for kind, k in [name.split("@")]}
    return Measurement(means, evaluator.ndcg_of_queries)


def evaluate(subjects: list[Subject], protocol: Protocol, cache: str | None = None) -> dict[str, Scores]:
    """The means of `measure`: label -> task -> metric -> value."""
    return scores_of(measure(subjects, protocol, cache))


def scores_of(measured: dict[str, dict[str, Measurement]]) -> dict[str, Scores]:
    """The means alone: label -> task -> metric -> value."""
    return {
        label: {task: measurement.scores for task, measurement in tasks.items()}
        for label, tasks in measured.items()
    }


def measure(
    subjects: list[Subject], protocol: Protocol, cache: str | None = None
) -> dict[str, dict[str, Measurement]]:
    """Measure models on every task, spread over the cluster.

    Args:
        cache: Directory for results; what was measured before, by content of model and task, is not again.

    Returns:
        label -> task -> measurement.

    Raises:
        BoomError: if a model or a task cannot be read.
    """
    tasks = find_tasks(protocol.data)
    results: dict[str, dict[str, Measurement]] = {subject.label: {} for subject in subjects}
    pending = {}
    for subject in subjects:
        digest = subject.digest or directory.identify(subject.uri).digest
        for name, task in tasks.items():
            place = storage.join(cache, f"{_identity(digest, task, protocol)}.json") if cache else None
            if place and storage.is_file(place):
                results[subject.label][name] = Measurement(**json.loads(storage.read_bytes(place)))
            else:
                pending[_score.remote(subject, protocol, task)] = subject.label, name, place
    for reference, (label, task, place) in _finished(pending):
        results[label][task] = result_of(reference)
        if place:
            storage.write_bytes(place, json.dumps(asdict(results[label][task])).encode())
    return {label: dict(sorted(tasks.items())) for label, tasks in results.items()}


def _identity(digest: str, task: LocalTask, protocol: Protocol) -> str:
    """Of a measurement: everything its scores depend on."""
    how = [protocol.query_prompt, protocol.max_length, "of each query"]
    return artifacts.fingerprint([digest, task.revision, *how])


def _finished(pending: dict[Any, Any]) -> Any:
    """Results as they come, with progress."""
    waiting = list(pending)
    with Progress() as progress:
        while waiting:
            done, waiting = ray.wait(waiting)
            progress.update("evaluate", len(pending) - len(waiting), len(pending))
            yield from ((reference, pending[reference]) for reference in done)
