"""Development and test sets are different: no model is measured on what its coefficients were learned on."""

from collections.abc import Sequence

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord
from boom_ray.errors import InputError
from boom_ray.evaluation.local_tasks import LocalTask


def refuse_development_tasks(models: Sequence[str], tasks: Sequence[LocalTask]) -> None:
    """Refuse to measure models on tasks that their coefficients were learned on, wherever the files are.

    Args:
        models: URIs.

    Raises:
        InputError: naming model and tasks.
    """
    for uri in models:
        record = None if storage.is_hub(uri) else artifacts.find(uri, ModelRecord)
        if record is None or record.metrics.learning is None:
            continue
        learned = set(record.metrics.learning.tasks.values())
        if same := [task.name for task in tasks if task.revision in learned]:
            raise InputError(
                f"{uri}: its coefficients were learned on {', '.join(same)}, so that its scores there say "
                "nothing of other queries. Measure it on other tasks"
            )
