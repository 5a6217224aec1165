"""The versions of a run: which exist, which one is current, and how two differ."""

import json
import re
from typing import Any

from rich.table import Table

from boom_ray import artifacts, storage
from boom_ray.artifacts.record import Record
from boom_ray.errors import BoomError
from boom_ray.runs import identity
from boom_ray.runs.scores import Scores, main_score, mean_scores

CURRENT = "current.json"
FIRST_VERSION = "v0001"
VERSION = re.compile(r"v\d{4}")


def versions(root: str) -> dict[str, Record]:
    """All published versions of a run, oldest first.

    Raises:
        BoomError: if there is none.
    """
    records = published(root)
    if not records:
        raise BoomError(f"{root}: no versions there. Give <storage>/<name> of a run")
    return records


def published(root: str) -> dict[str, Record]:
    """All published versions of a run, oldest first; none before the first is published."""
    models = storage.join(root, "models")
    names = [name for name in storage.list_names(models) if VERSION.fullmatch(name)]
    found = {name: artifacts.read_record(storage.join(models, name)) for name in names}
    return {name: record for name, record in found.items() if record is not None}


def current(root: str) -> str:
    """The version that is to be served: the newest, unless an older one was chosen since."""
    records = versions(root)
    place = storage.join(root, CURRENT)
    chosen = json.loads(storage.read_bytes(place)) if storage.is_file(place) else {}
    newest = max(records)
    return chosen["version"] if chosen.get("newest") == newest and chosen["version"] in records else newest


def model_at(uri: str) -> str:
    """A model, named by its own URI or by that of a run, which stands for the run's current version."""
    uri = storage.absolute(uri)
    return storage.join(uri, "models", current(uri)) if _is_run(uri) else uri


def runs(uri: str) -> list[str]:
    """The run at a URI, or all runs directly below it.

    Raises:
        BoomError: if there is none.
    """
    if _is_run(uri):
        return [uri]
    below = [storage.join(uri, name) for name in storage.list_names(uri)]
    found = [place for place in below if _is_run(place)]
    if not found:
        raise BoomError(f"{uri}: no run there, and none below it. Give <storage> or <storage>/<name>")
    return found


def _is_run(uri: str) -> bool:
    return not storage.is_hub(uri) and storage.is_file(storage.join(uri, identity.FILE))


def roll_back(root: str, version: str) -> None:
    """Make an older version the current one, until a new one is published.

    Raises:
        BoomError: if there is no such version.
    """
    records = versions(root)
    if version not in records:
        raise BoomError(f"{root}: no version {version}; there are {', '.join(records)}")
    content = {"version": version, "newest": max(records)}
    storage.write_bytes(storage.join(root, CURRENT), json.dumps(content).encode())


def table(root: str) -> Table:
    """A line for each version of a run: parents, data, means, size, and which is current."""
    records, chosen = published(root), current(root) if published(root) else None
    headers = ("version", "created", "made from", "data", "rows", "mean score", "size")
    title = f"{storage.name_of(root)}{'' if records else ': no version yet'}"
    lines = Table(*headers, title=title, title_justify="left", box=None, show_header=bool(records))
    for name, record in records.items():
        parents = ", ".join(labels_of_parents(record))
        size = sum(entry.size for entry in record.files.values())
        rows = f"{record.config.get('rows', 0):,}"
        shown = name + ("  (current)" if name == chosen else "")
        cells = [record.created, parents, data_of(root, record), rows, means_of(record)]
        lines.add_row(shown, *cells, f"{size / 2**20:,.0f} MiB")
    return lines


def labels_of_parents(record: Record) -> list[str]:
    """What people call the models that were merged; those that updates trained by their versions."""
    return [
        parent.version if parent.name == record.name else f"update of {parent.name}"
        for parent in record.parents
    ]


def data_of(root: str, record: Record) -> str:
    """The tasks that a version brought in: of an update those that were new, else the whole corpus."""
    if "new_tasks" in record.config:
        return " ".join(f"+{task}" for task in record.config["new_tasks"])
    corpus = artifacts.read_record(storage.join(root, "corpus"))
    return f"{len(corpus.config['tasks'])} tasks" if corpus else "-"


def results_of(record: Record) -> dict[str, Scores]:
    """The scores of a version's own model on each set of tasks it was measured on; an update's by age."""
    metrics = record.metrics
    results = {"": metrics["evaluation"]["merged"]} if "evaluation" in metrics else {}
    return results | {kind: metrics[kind]["child"] for kind in ("old", "new") if kind in metrics}


def means_of(record: Record) -> str:
    """The means of `results_of`, as people read them."""
    means = {name: main_score(mean_scores(scores)["all"]) for name, scores in results_of(record).items()}
    return ", ".join(f"{name} {mean:.3f}".strip() for name, mean in means.items()) or "-"


def diff(one: str, other: str) -> list[str]:
    """What differs between two models: configuration, parents, tensors, and scores on each task.

    Raises:
        BoomError: if one of them is no artifact.
    """
    records = [artifacts.read_record(uri) for uri in (one, other)]
    for uri, record in zip((one, other), records, strict=True):
        if record is None:
            raise BoomError(f"{uri}: not an artifact")
    left, right = (_facts(record) for record in records if record is not None)
    lines = [
        f"{key}: {left.get(key, '-')} -> {right.get(key, '-')}"
        for key in dict.fromkeys([*left, *right])
        if left.get(key) != right.get(key)
    ]
    return lines or ["no difference"]


def _facts(record: Record) -> dict[str, Any]:
    facts: dict[str, Any] = {f"config.{key}": value for key, value in record.config.items()}
    facts |= {"digest": record.digest, "code": record.code_version}
    facts["parents"] = ", ".join(f"{parent.version} {parent.digest[:8]}" for parent in record.parents)
    tensors = {name: (entry.dtype, tuple(entry.shape)) for name, entry in record.tensors.items()}
    facts["tensors"] = f"{len(tensors)} of {artifacts.fingerprint(sorted(tensors.items()))[:8]}"
    facts["mean score"] = means_of(record)
    scores = {task: found for results in results_of(record).values() for task, found in results.items()}
    return facts | {f"score {task}": f"{main_score(found):.4f}" for task, found in scores.items()}
