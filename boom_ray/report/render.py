"""The page itself: one HTML file without scripts, with all it shows inside; nothing is fetched to show it."""

import math
import time
from typing import Any

import jinja2
import yaml

from boom_ray import __version__, storage
from boom_ray.artifacts.record import Record
from boom_ray.report import merging, quality, scale, schedule, summary, training
from boom_ray.report.collect import Found, collect
from boom_ray.runs import ancestry
from boom_ray.runs.ancestry import Ancestor


def write(root: str, version: str | None = None, out: str | None = None) -> str:
    """Write the page of a run.

    Args:
        root: `<storage>/<name>`.
        version: By default the current one; if there is none yet, the run as far as it is.
        out: URI of the file; by default `report-VERSION.html` in the run's directory.

    Returns:
        URI of the file.

    Raises:
        BoomError: if there is no such run or version.
    """
    found = collect(root, version)
    out = out or storage.join(root, f"report-{found.version or 'unfinished'}.html")
    storage.write_bytes(out, page(found).encode())
    return out


def page(found: Found) -> str:
    """The page as text; whatever comes from outside, as names of tasks do, is escaped."""
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
    contests, timeline = quality.contests(found), schedule.timeline(found)
    tree = ancestry.ancestry(found.record.as_parent(), found.artifacts) if found.record else None
    return environment.get_template("page.html.j2").render(
        found=found,
        summary=summary.summary(found, contests, timeline),
        base=summary.base_of(found),
        boards=[quality.board(contest) for contest in contests],
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


def _costs(found: Found) -> list[tuple[str, schedule.Cost]]:
    """Of the models that are merged, and of the baseline beside them."""
    parts = {"update" if found.request else "all bags": found.bags}
    parts |= {model.name: [model] for model in found.trained if model not in found.bags}
    return [(name, cost) for name, models in parts.items() if (cost := schedule.cost(found, models))]


def _artifacts(found: Found, root: Ancestor | None) -> list[Ancestor]:
    """The version and its ancestors, each once; before there is a version, what the run has made so far."""
    if root is None:
        return [Ancestor(path, record.as_parent(), record, []) for path, record in found.artifacts.items()]
    distinct, waiting = dict[str, Ancestor](), [root]
    while waiting:
        one = waiting.pop(0)
        distinct.setdefault(str(one.identity), one)
        waiting += one.parents
    return list(distinct.values())


def _configuration(found: Found) -> list[tuple[str, str]]:
    """What was asked for, as YAML: the recipe, an update's request, and what the merge recorded."""
    merge = found.record.config if found.record else None
    parts = {"Recipe": found.recipe, "Update": found.request, "Merge, as recorded": merge}
    return [
        (name, yaml.safe_dump(part.model_dump(mode="json", exclude_none=True), sort_keys=False))
        for name, part in parts.items()
        if part
    ]


def _tensors(record: Record) -> dict[str, Any]:
    """How many tensors and parameters a model has, of which types."""
    sizes = [math.prod(entry.shape) for entry in record.tensors.values()]
    return {
        "tensors": len(sizes),
        "parameters": sum(sizes),
        "types": sorted({entry.dtype for entry in record.tensors.values()}),
    }


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"
