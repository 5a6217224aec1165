"""The versions of a run: which exist, which one is current, and how two models differ."""

import json
import re
from typing import Any

from rich.table import Table

from boom_ray import artifacts, storage
from boom_ray.artifacts import CorpusRecord, ModelRecord
from boom_ray.artifacts.contents import Scores
from boom_ray.errors import NotFoundError
from boom_ray.runs.identity import is_run
from boom_ray.runs.layout import Layout
from boom_ray.runs.scores import main_score, mean_scores

VERSION = re.compile(r"v\d{4}")


def versions(root: str) -> dict[str, ModelRecord]:
    """All published versions of a run, oldest first.

    Raises:
        NotFoundError: if there is none.
    """
    records = published(root)
    if not records:
        raise NotFoundError(f"{root}: no versions. Give <storage>/<name> of a run that has published one")
    return records


def published(root: str) -> dict[str, ModelRecord]:
    """All published versions of a run, oldest first; empty before the first is published."""
    layout = Layout(root)
    names = [name for name in storage.list_names(layout.models) if VERSION.fullmatch(name)]
    found = {name: artifacts.find(layout.model(name), ModelRecord) for name in names}
    return {name: record for name, record in found.items() if record is not None}


def current(root: str) -> str:
    """The version to serve: the newest, unless a rollback chose an older one since."""
    records, uri = versions(root), Layout(root).current
    chosen = json.loads(storage.read_bytes(uri)) if storage.is_file(uri) else {}
    newest = max(records)
    return chosen["version"] if chosen.get("newest") == newest and chosen["version"] in records else newest


def model_at(uri: str) -> str:
    """URI of a model, given by its own URI or by that of a run, which means the run's current version."""
    uri = storage.absolute(uri)
    return Layout(uri).model(current(uri)) if is_run(uri) else uri


def runs(uri: str) -> list[str]:
    """The run at a URI, or all runs directly below it.

    Raises:
        NotFoundError: if there is none.
    """
    if is_run(uri):
        return [uri]
    below = [storage.join(uri, name) for name in storage.list_names(uri)]
    found = [root for root in below if is_run(root)]
    if not found:
        raise NotFoundError(f"{uri}: no run here or directly below. Give <storage> or <storage>/<name>")
    return found


def roll_back(root: str, version: str) -> None:
    """Make an older version the current one until a new one is published.

    Raises:
        NotFoundError: if there is no such version.
    """
    records = versions(root)
    if version not in records:
        raise NotFoundError(f"{root}: no version {version}; versions: {', '.join(records)}")
    content = {"version": version, "newest": max(records)}
    storage.write_bytes(Layout(root).current, json.dumps(content).encode())


def table(root: str) -> Table:
    """One row per version of a run: parents, data, means, size, and which is current."""
    records = published(root)
    chosen = current(root) if records else None
    headers = ("version", "created", "made from", "data", "rows", "mean score", "size")
    title = f"{storage.name_of(root)}{'' if records else ': no version yet'}"
    lines = Table(*headers, title=title, title_justify="left", box=None, show_header=bool(records))
    for name, record in records.items():
        parents = ", ".join(labels_of_parents(record))
        size = sum(entry.size for entry in record.files.values())
        shown = name + ("  (current)" if name == chosen else "")
        cells = [record.created, parents, data_of(root, record), f"{record.config.rows or 0:,}"]
        lines.add_row(shown, *cells, means_of(record), f"{size / 2**20:,.0f} MiB")
    return lines


def labels_of_parents(record: ModelRecord) -> list[str]:
    """Labels of the models that were merged; an update's own model is labelled by the update's version."""
    return [
        parent.version if parent.name == record.name else f"update of {parent.name}"
        for parent in record.parents
    ]


def data_of(root: str, record: ModelRecord) -> str:
    """The tasks that a version brought in: the new ones of an update, else the whole corpus."""
    if record.config.update:
        return " ".join(f"+{task}" for task in record.config.update.new_tasks)
    corpus = artifacts.find(Layout(root).corpus, CorpusRecord)
    return f"{len(corpus.config.tasks)} tasks" if corpus else "-"


def results_of(record: ModelRecord) -> dict[str, Scores]:
    """The scores of a version by set of tasks: one unnamed set, or `old` and `new` of an update."""
    metrics = record.metrics
    if metrics.update:
        return {kind: results["child"] for kind, results in metrics.update.scores.items()}
    return {"": metrics.evaluation["merged"]} if "merged" in metrics.evaluation else {}


def means_of(record: ModelRecord) -> str:
    """The means of `results_of` as text."""
    means = {name: main_score(mean_scores(scores)["all"]) for name, scores in results_of(record).items()}
    return ", ".join(f"{name} {mean:.3f}".strip() for name, mean in means.items()) or "-"


def diff(one: str, other: str) -> list[str]:
    """The differences of two models: settings, parents, tensors, and scores on each task.

    Raises:
        NotFoundError: if one of them has no record.
    """
    left, right = (_facts(artifacts.read(uri, ModelRecord)) for uri in (one, other))
    lines = [
        f"{key}: {left.get(key, '-')} -> {right.get(key, '-')}"
        for key in dict.fromkeys([*left, *right])
        if left.get(key) != right.get(key)
    ]
    return lines or ["no difference"]


def _facts(record: ModelRecord) -> dict[str, Any]:
    facts: dict[str, Any] = {f"config.{key}": value for key, value in record.config.facts().items()}
    facts |= {"digest": record.digest, "code": record.code_version}
    facts["parents"] = ", ".join(f"{parent.version} {parent.digest[:8]}" for parent in record.parents)
    tensors = {name: (entry.dtype, tuple(entry.shape)) for name, entry in record.tensors.items()}
    facts["tensors"] = f"{len(tensors)} of {artifacts.fingerprint(sorted(tensors.items()))[:8]}"
    facts["mean score"] = means_of(record)
    scores = {task: found for results in results_of(record).values() for task, found in results.items()}
    return facts | {f"score {task}": f"{main_score(found):.4f}" for task, found in scores.items()}
