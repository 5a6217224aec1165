"""boom-ray: train, merge, refresh and serve text embedding models by bagging, on Ray.

Example:
    >>> import boom_ray as boom
    >>> run = boom.run(boom.Recipe.load("recipe.yaml"))
    >>> run.scores.to_frame()
    >>> boom.merge(["a", "b"], out="m", base="base", method="multislerp")
    >>> boom.embed(run.model, "texts.parquet", "vectors", prompt_name="query")
    >>> boom.load(run.model).encode(["how do I sort a list?"])

Everything in `__all__` is imported when it is first used: neither torch nor Ray load before they are needed.
"""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from boom_ray.api.embedding import LoadedModel, drift, embed, load
    from boom_ray.api.evaluating import evaluate
    from boom_ray.api.history import diff, lineage, models, report, reproduce, rollback, status, verify
    from boom_ray.api.making import plan, run, train, update
    from boom_ray.api.merging import merge
    from boom_ray.api.results import (
        EmbedResult,
        EvaluationResult,
        Lineage,
        MergeResult,
        ModelsTable,
        ModelVersion,
        Reproduction,
    )
    from boom_ray.api.serving import ServeHandle, serve, serve_config
    from boom_ray.artifacts.record import (
        BagsRecord,
        CoreRecord,
        CorpusRecord,
        EmbeddingsRecord,
        ModelRecord,
        Record,
    )
    from boom_ray.embed.drift import Drift
    from boom_ray.errors import (
        BoomError,
        ClusterError,
        ConflictError,
        InputError,
        NotFoundError,
        StorageError,
    )
    from boom_ray.pipeline.run import RunResult
    from boom_ray.pipeline.update.make import UpdateResult
    from boom_ray.planner.plan import RunPlan
    from boom_ray.recipe import Recipe, Task
    from boom_ray.runs.scores import ScoreTable
    from boom_ray.runs.status import RunStatus
    from boom_ray.runtime.progress import ProgressEvent

__version__ = "0.1.0"

#: Module below `boom_ray` -> its public names.
_PUBLIC = {
    "api.embedding": ["LoadedModel", "drift", "embed", "load"],
    "api.evaluating": ["evaluate"],
    "api.history": ["diff", "lineage", "models", "report", "reproduce", "rollback", "status", "verify"],
    "api.making": ["plan", "run", "train", "update"],
    "api.merging": ["merge"],
    "api.results": [
        *("EmbedResult", "EvaluationResult", "Lineage", "MergeResult"),
        *("ModelVersion", "ModelsTable", "Reproduction"),
    ],
    "api.serving": ["ServeHandle", "serve", "serve_config"],
    "artifacts.record": [
        *("BagsRecord", "CoreRecord", "CorpusRecord", "EmbeddingsRecord", "ModelRecord", "Record"),
    ],
    "embed.drift": ["Drift"],
    "errors": [
        *("BoomError", "ClusterError", "ConflictError", "InputError", "NotFoundError", "StorageError"),
    ],
    "pipeline.run": ["RunResult"],
    "pipeline.update.make": ["UpdateResult"],
    "planner.plan": ["RunPlan"],
    "recipe": ["Recipe", "Task"],
    "runs.scores": ["ScoreTable"],
    "runs.status": ["RunStatus"],
    "runtime.progress": ["ProgressEvent"],
}
_MODULE_OF = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = [
    "BagsRecord",
    "BoomError",
    "ClusterError",
    "ConflictError",
    "CoreRecord",
    "CorpusRecord",
    "Drift",
    "EmbedResult",
    "EmbeddingsRecord",
    "EvaluationResult",
    "InputError",
    "Lineage",
    "LoadedModel",
    "MergeResult",
    "ModelRecord",
    "ModelVersion",
    "ModelsTable",
    "NotFoundError",
    "ProgressEvent",
    "Recipe",
    "Record",
    "Reproduction",
    "RunPlan",
    "RunResult",
    "RunStatus",
    "ScoreTable",
    "ServeHandle",
    "StorageError",
    "Task",
    "UpdateResult",
    "diff",
    "drift",
    "embed",
    "evaluate",
    "lineage",
    "load",
    "merge",
    "models",
    "plan",
    "report",
    "reproduce",
    "rollback",
    "run",
    "serve",
    "serve_config",
    "status",
    "train",
    "update",
    "verify",
]


class _Package(ModuleType):
    """Keeps public functions that have the name of a subpackage, such as `merge`.

    Importing `boom_ray.merge.methods` would bind the subpackage as `boom_ray.merge`. `import` statements find
    subpackages in `sys.modules`, so they do not need that attribute.
    """

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


if not TYPE_CHECKING:  # else type checkers would accept any name

    def __getattr__(name: str) -> Any:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})


sys.modules[__name__].__class__ = _Package
