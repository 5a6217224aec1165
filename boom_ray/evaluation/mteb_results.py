"""Result files of mteb at a URI, in the layout of mteb's own cache and of its results repository.

`<uri>/results/<organization>__<name>/<revision>/<task>.json`, with a `model_meta.json` and a
`run_settings.jsonl` in the same folder. The revision of a model is the digest of its content, so a result
never counts for another model.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mteb
from mteb.models import ModelMeta
from mteb.results import TaskResult

from boom_ray import storage


@dataclass(frozen=True)
class MtebResult:
    """A result of mteb, and its description of the model: of a cached result, name and revision only."""

    scores: TaskResult
    meta: ModelMeta


def read(uri: str, task: mteb.AbsTask, meta: ModelMeta) -> TaskResult | None:
    """The result for the same model and the same revision of the data, complete or in part, or None.

    Args:
        meta: Name, revision and experiment of the model.
    """
    with _local_cache() as local:
        path = _uri_of(uri, local, local.get_task_result_path(task.metadata.name, meta))
    if not storage.is_file(path):
        return None
    found = TaskResult.model_validate_json(storage.read_bytes(path))
    return found if found.dataset_revision == task.metadata.revision else None


def write(uri: str, result: MtebResult, encode_settings: dict[str, Any]) -> None:
    """Store a result with the description of its model.

    Args:
        encode_settings: Arguments of mteb's call of the model, for `run_settings.jsonl`.
    """
    with _local_cache() as local:
        path = local.get_task_result_path(result.scores.task_name, result.meta)
        path.parent.mkdir(parents=True, exist_ok=True)
        described, settings = path.parent / "model_meta.json", path.parent / "run_settings.jsonl"
        # mteb merges the settings of a task into those of the tasks before it.
        if storage.is_file(_uri_of(uri, local, settings)):
            settings.write_bytes(storage.read_bytes(_uri_of(uri, local, settings)))
        local.save_to_cache(result.scores, result.meta, encode_kwargs=encode_settings)
        # The result is written last: a rerun takes its presence to mean that the other files exist.
        for written in (described, settings, path):
            storage.write_bytes(_uri_of(uri, local, written), written.read_bytes())


@contextmanager
def _local_cache() -> Iterator[mteb.ResultCache]:
    """A temporary cache: mteb knows the layout, but writes to local directories only."""
    with tempfile.TemporaryDirectory() as scratch:
        yield mteb.ResultCache(scratch)


def _uri_of(uri: str, local: mteb.ResultCache, path: Path) -> str:
    return storage.join(uri, path.relative_to(local.cache_path).as_posix())
