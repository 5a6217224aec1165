"""The page: one self-contained HTML file without scripts; a browser fetches nothing to show it."""

import math
import time
from typing import Any

import jinja2
import yaml

from boom_ray import __version__, storage
from boom_ray.artifacts.record import Record
from boom_ray.report import merging, quality, scale, schedule, summary, training
from boom_ray.report.collect import RunContents, collect
from boom_ray.runs import ancestry
from boom_ray.runs.ancestry import Ancestor


def write(root: str, version: str | None = None, out: str | None = None) -> str:
    """Write the page of a run.

    Args:
        root: `<storage>/<name>`.
        version: By default the current one, or none while the run is not finished.
        out: URI of the file; by default `report-VERSION.html` in the run's directory.

    Returns:
        URI of the file.

    Raises:
        NotFoundError: if there is no such run or version.
    """
    found = collect(root, version)
    out = out or storage.join(root, f"report-{found.version or 'unfinished'}.html")
    storage.write_bytes(out, page(found).encode())
    return out


def page(found: RunContents) -> str:
    """The HTML of the page; all values, such as names of tasks, are escaped."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("boom_ray.report"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {
        "duration": scale.duration,
        "signed": scale.signed,
        "moment": scale.moment,
        "size": _size,
    }
    comparisons, timeline = quality.model_comparisons(found), schedule.timeline(found)
    tree = ancestry.ancestry(found.record.as_parent(), found.artifacts) if found.record else None
    return environment.get_template("page.html.j2").render(
        found=found,
        summary=summary.summary(found, comparisons, timeline),
        base=summary.base_of(found),
        comparison_charts=[quality.chart(comparison) for comparison in comparisons],
        tables=quality.tables(found),
        mix=training.mix(found),
        curves=training.curves(found),
        merging=merging.merging(found),
        timeline=timeline,
        costs=_costs(found),
        tree=tree,
        artifacts=_artifacts(found, tree),
        configuration=_configuration(found),
        tensors=_tensors(found.record) if found.record else None,
        code_version=__version__,
        now=time.time(),
    )


def _costs(found: RunContents) -> list[tuple[str, schedule.TrainingCost]]:
    """The cost of the models that are merged, and that of the baseline."""
    parts = {"update" if found.request else "all bags": found.bags}
    parts |= {model.name: [model] for model in found.trained if model not in found.bags}
    return [(name, cost) for name, models in parts.items() if (cost := schedule.cost(found, models))]


def _artifacts(found: RunContents, root: Ancestor | None) -> list[Ancestor]:
    """The version and its ancestors without repetition; without a version, all artifacts of the run."""
    if root is None:
        return [Ancestor(path, record.as_parent(), record, []) for path, record in found.artifacts.items()]
    distinct, queue = dict[str, Ancestor](), [root]
    while queue:  # breadth first: the nearest ancestors come first
        one = queue.pop(0)
        distinct.setdefault(str(one.identity), one)
        queue += one.parents
    return list(distinct.values())


def _configuration(found: RunContents) -> list[tuple[str, str]]:
    """The settings as YAML: the recipe, those of an update, and those that the merge recorded."""
    merge = found.record.config if found.record else None
    parts = {"Recipe": found.recipe, "Update": found.request, "Merge, as recorded": merge}
    return [
        (name, yaml.safe_dump(part.model_dump(mode="json", exclude_none=True), sort_keys=False))
        for name, part in parts.items()
        if part
    ]


def _tensors(record: Record) -> dict[str, Any]:
    """Number of tensors and parameters of a model, and their data types."""
    sizes = [math.prod(entry.shape) for entry in record.tensors.values()]
    return {
        "tensors": len(sizes),
        "parameters": sum(sizes),
        "types": sorted({entry.dtype for entry in record.tensors.values()}),
    }


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
