"""Result files of mteb at a URI, where a rerun and a submission find them.

They have the layout of mteb's own cache and of its results repository:
`<uri>/results/<organization>__<name>/<revision>/<task>.json` beside a `model_meta.json`. A model's revision
is the digest of its content, so nothing is measured twice, and nothing is mistaken for something else.
"""

from pathlib import Path
from typing import Any

import mteb
from mteb.models import ModelMeta
from mteb.results import TaskResult

from boom_ray import storage


class Results:
    """The result files at a URI; each becomes visible in one step.

    Args:
        scratch: A local directory, in which mteb writes.
    """

    def __init__(self, uri: str, scratch: str) -> None:
        self.uri, self.cache = uri, mteb.ResultCache(scratch)

    def find(self, task: mteb.AbsTask, meta: ModelMeta) -> TaskResult | None:
        """The result for the same data, complete or in part."""
        place = self._place(self.cache.get_task_result_path(task.metadata.name, meta))
        if not storage.is_file(place):
            return None
        found = TaskResult.model_validate_json(storage.read_bytes(place))
        return found if found.dataset_revision == task.metadata.revision else None

    def keep(self, result: TaskResult, meta: ModelMeta, settings: dict[str, Any]) -> None:
        """Store a result with what is known of the model, the result itself last.

        Args:
            settings: How the model encoded.
        """
        path = self.cache.get_task_result_path(result.task_name, meta)
        path.parent.mkdir(parents=True, exist_ok=True)
        described, told = path.parent / "model_meta.json", path.parent / "run_settings.jsonl"
        if storage.is_file(self._place(told)):
            told.write_bytes(storage.read_bytes(self._place(told)))
        self.cache.save_to_cache(result, meta, encode_kwargs=settings)
        for written in (described, told, path):
            storage.write_bytes(self._place(written), written.read_bytes())

    def _place(self, path: Path) -> str:
        return storage.join(self.uri, path.relative_to(self.cache.cache_path).as_posix())
