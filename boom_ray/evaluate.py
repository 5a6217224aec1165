"""Evaluation: nDCG@10, MRR@10 and recall@100 on BEIR directories, with the evaluator of
sentence-transformers.

A directory is searched for BEIR directories (`corpus.jsonl queries.jsonl qrels/*.tsv`); the folders a task
lies in are its group, and every group has a mean: `in_domain/numpy` and `out_of_domain/scipy` give two.
"""

import json
from dataclasses import dataclass
from typing import Any, cast

import ray
import torch
from sentence_transformers import util
from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

from boom_ray import artifact, storage
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.progress import Progress
from boom_ray.recipe import BaseModelSource
from boom_ray.session import result_of

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
        data: Directory of BEIR directories.
        query_prompt: Text before every query; None for each model's own `query` prompt.
        max_length: Tokens after which texts are cut; None for each model's own.
        chunk_tokens: Padded tokens in one forward pass.
    """

    data: str
    query_prompt: str | None = None
    max_length: int | None = None
    chunk_tokens: int = 4096


class RetrievalEvaluator(InformationRetrievalEvaluator):
    """The evaluator of sentence-transformers over our encoder."""

    def __init__(self, task: str, max_length: int | None, chunk_tokens: int, **options: Any) -> None:
        super().__init__(
            **read_beir(task),
            score_functions={"cosine": util.cos_sim},
            mrr_at_k=[10],
            ndcg_at_k=[10],
            precision_recall_at_k=[100],
            **options,
        )
        self.max_length, self.chunk_tokens = max_length, chunk_tokens

    def embed_inputs(self, model: Any, sentences: Any, prompt: str | None = None, **_: Any) -> Any:  # type: ignore[override]
        """Embed texts; see the base class."""
        token_ids = model.tokenize([(prompt or "") + text for text in sentences], self.max_length)
        return torch.from_numpy(model.encode_tokens(token_ids, self.chunk_tokens))


def find_tasks(data: str) -> dict[str, str]:
    """Every BEIR directory at or below `data`, by its path relative to it.

    Raises:
        BoomError: if there is none.
    """
    suffix = "corpus.jsonl"
    found = [name[: -len(suffix)].rstrip("/") for name in storage.list_files(data) if name.endswith(suffix)]
    if not found:
        raise BoomError(
            f"{data}: no BEIR directory there. Expected corpus.jsonl, queries.jsonl and qrels/*.tsv"
        )
    return {name or storage.name_of(data): storage.join(data, name).rstrip("/") for name in found}


def read_beir(task: str) -> dict[str, Any]:
    """One BEIR directory as the evaluator takes it: `corpus`, `queries` and `relevant_docs`.

    Raises:
        BoomError: if a file is missing, or a line is not what it should be.
    """
    try:
        documents = _read_lines(storage.join(task, "corpus.jsonl"))
        corpus = {row["_id"]: f"{row.get('title') or ''} {row['text']}".strip() for row in documents}
        queries = {row["_id"]: row["text"] for row in _read_lines(storage.join(task, "queries.jsonl"))}
        relevant: dict[str, set[str]] = {}
        for query, document, score in _read_qrels(task):
            if int(score) > 0:
                relevant.setdefault(query, set()).add(document)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, BoomError):
            raise
        raise BoomError(f"{task}: not in BEIR format: {type(error).__name__}: {error}") from error
    return {"corpus": corpus, "queries": queries, "relevant_docs": relevant}


def _read_lines(uri: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in storage.read_bytes(uri).splitlines() if line.strip()]


def _read_qrels(task: str) -> list[list[str]]:
    folder = storage.join(task, "qrels")
    names = [name for name in storage.list_names(folder) if name.endswith(".tsv")]
    if not names:
        raise BoomError(f"{folder}: no .tsv file there")
    chosen = ["test.tsv"] if "test.tsv" in names else names
    lines = [
        line
        for name in chosen
        for line in storage.read_bytes(storage.join(folder, name)).decode().splitlines()
    ]
    return [line.split("\t") for line in lines if line.strip() and not line.startswith("query-id")]


@ray.remote(num_cpus=1)
def _score(subject: Subject, protocol: Protocol, task: str) -> dict[str, float]:
    encoder = directory.load_encoder(storage.local_directory(subject.uri), subject.source)
    prompt = protocol.query_prompt
    prompt = encoder.spec.prompts.get("query", "") if prompt is None else prompt
    evaluator = RetrievalEvaluator(task, protocol.max_length, protocol.chunk_tokens, query_prompt=prompt)
    scores: Any = evaluator.compute_all_metrics(cast(Any, encoder))["cosine"]
    return {name: float(scores[f"{kind}@k"][int(k)]) for name in METRICS for kind, k in [name.split("@")]}


def evaluate(subjects: list[Subject], protocol: Protocol, cache: str | None = None) -> dict[str, Scores]:
    """Measure models on every task, spread over the cluster.

    Args:
        cache: Directory for results; what was measured before, by content of model and task, is not again.

    Returns:
        label -> task -> metric -> value.

    Raises:
        BoomError: if a model or a task cannot be read.
    """
    tasks = find_tasks(protocol.data)
    contents = {task: _task_digest(uri) for task, uri in tasks.items()} if cache else {}
    results: dict[str, Scores] = {subject.label: {} for subject in subjects}
    pending = {}
    for subject in subjects:
        digest = subject.digest or directory.identify(subject.uri).digest
        for task, uri in tasks.items():
            key = artifact.fingerprint(
                [digest, contents.get(task), protocol.query_prompt, protocol.max_length]
            )
            place = storage.join(cache, f"{key}.json") if cache else None
            if place and storage.is_file(place):
                results[subject.label][task] = json.loads(storage.read_bytes(place))
            else:
                pending[_score.remote(subject, protocol, uri)] = subject.label, task, place
    for reference, (label, task, place) in _finished(pending):
        results[label][task] = result_of(reference)
        if place:
            storage.write_bytes(place, json.dumps(results[label][task]).encode())
    return {label: dict(sorted(scores.items())) for label, scores in results.items()}


def _finished(pending: dict[Any, Any]) -> Any:
    """Results as they come, with progress."""
    waiting = list(pending)
    with Progress() as progress:
        while waiting:
            done, waiting = ray.wait(waiting)
            progress.update("evaluate", len(pending) - len(waiting), len(pending))
            yield from ((reference, pending[reference]) for reference in done)


def _task_digest(uri: str) -> str:
    files = storage.list_files(uri)
    return artifact.fingerprint(
        {name: artifact.hash_file(storage.join(uri, name)).xxh3_128 for name in files}
    )
