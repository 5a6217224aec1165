"""Development and test sets are different: no model is measured on the tasks its merge was chosen on."""

from collections.abc import Sequence

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord
from boom_ray.errors import InputError
from boom_ray.evaluation.local_tasks import LocalTask


def refuse_development_tasks(models: Sequence[str], tasks: Sequence[LocalTask]) -> None:
    """Refuse to measure models on tasks, or copies of tasks, that their merge was chosen on or learned from.

    Args:
        models: URIs.

    Raises:
        InputError: naming model and tasks.
    """
    for uri in models:
        record = None if storage.is_hub(uri) else artifacts.find(uri, ModelRecord)
        if record is None:
            continue
        search, learning = record.metrics.search, record.metrics.learning
        used = {*(search.tasks.values() if search else ()), *(learning.tasks.values() if learning else ())}
        if used and (same := [task.name for task in tasks if task.revision in used]):
            raise InputError(
                f"{uri}: its merge was chosen on {', '.join(same)}, whose scores are therefore biased. "
                "Measure it on other tasks"
            )
