"""`boom-ray merge`."""

from typing import Any, get_args

import click

from boom_ray import storage
from boom_ray.cli.group import main, workers_option
from boom_ray.errors import InputError
from boom_ray.recipe import Merge, MergeMethod, SaveDtype
from boom_ray.runtime import signals


def _weights(context: click.Context, parameter: click.Parameter, value: str) -> str | list[float]:
    if value in ("equal", "size"):
        return value
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"got {value!r}; allowed: equal, size, or numbers like 1,2,0.5") from None


@main.command()
@click.argument("models", nargs=-1, metavar="MODEL MODEL [MODEL ...]")
@click.option("--out", required=True, metavar="DIR", help="Directory that the merged model is published to.")
@click.option("--method", type=click.Choice(get_args(MergeMethod)), default="multislerp", show_default=True)
@click.option(
    "--weights", default="equal", callback=_weights, metavar="equal|size|W,W,...", show_default=True
)
@click.option(
    "--base-model", metavar="DIR", help="Merge task vectors from this base model instead of the weights."
)
@click.option("--dtype", type=click.Choice(get_args(SaveDtype)), default="bfloat16", show_default=True)
@click.option("--scale", default=1.0, help="Factor on the task vector: task_arithmetic, ties, dare_linear.")
@click.option(
    "--iterations", default=10, type=click.IntRange(min=1), help="Steps of karcher; 1 is the paper's formula."
)
@click.option(
    "--density",
    default=0.5,
    type=click.FloatRange(0, 1, min_open=True),
    help="Fraction of each task vector that is kept: ties, dare_linear.",
)
@click.option("--seed", default=0, help="Seed of the random choice of dare_linear.")
@click.option("--mergekit-config", metavar="FILE", help="Models and method from a YAML file of mergekit.")
@click.option("--report", metavar="FILE.json", help="Write the distances between the models, and a picture.")
@click.option("--search", is_flag=True, help="Choose method and weights by a development set.")
@click.option("--data", metavar="DIR", help="The development set: a directory of tasks.")
@click.option(
    "--trials", default=12, type=click.IntRange(min=1), help="Number of merges that a search tries."
)
@click.option(
    "--memory",
    default=1.0,
    type=click.FloatRange(min=0.5),
    metavar="GIB",
    help="Memory of a worker.",
    show_default=True,
)
@workers_option
@signals.heeded()
def merge(**options: Any) -> None:
    """Merge models of one architecture into one."""
    from boom_ray.runtime import cluster

    if options["search"] != bool(options["data"]):
        raise InputError("--search and --data DIR go together: a search chooses by the data")
    if options["mergekit_config"] and options["models"]:
        raise InputError("give models, or --mergekit-config FILE which names them; not both")
    models, base, settings = _settings(options)
    if len(models) < 2:
        raise InputError(f"merge needs two models or more; got {len(models)}")
    cluster.connect(dashboard=False)
    _merge(models, base, settings, options)


def _settings(options: dict[str, Any]) -> tuple[list[str], str | None, Merge]:
    """Models, base model and settings, from the options or from a file of mergekit."""
    from boom_ray.merge import mergekit
    from boom_ray.merge.settings import merge_settings

    if options["mergekit_config"]:
        models, base, settings = mergekit.read(options["mergekit_config"])
    else:
        models = [storage.absolute(model) for model in options["models"]]
        base = storage.absolute(options["base_model"]) if options["base_model"] else None
        names = ("method", "weights", "dtype", "scale", "iterations", "density", "seed")
        settings = merge_settings(
            **{name: options[name] for name in names}, space="deltas" if base else "weights"
        )
    execution = settings.execution.model_copy(
        update={
            "num_workers": options["num_workers"] or 1,
            "memory_bytes": int(options["memory"] * (1 << 30)),
        }
    )
    return models, base, settings.model_copy(update={"execution": execution})


def _merge(models: list[str], base: str | None, settings: Merge, options: dict[str, Any]) -> None:
    out = storage.absolute(options["out"])
    if options["search"]:
        from boom_ray.pipeline.merge_search import search

        found = search(models, out, base, settings, storage.absolute(options["data"]), options["trials"])
        record, grams = found.record, found.grams
    else:
        from boom_ray.pipeline.publish import merge_models

        record, merged = merge_models(models, out, base, settings)
        grams = merged.grams
    if options["report"]:
        from boom_ray.merge import distances

        report = distances.distances([storage.name_of(model) for model in models], settings.space, grams)
        uri = storage.absolute(options["report"])
        click.echo(f"report: {uri}, {distances.write(report, uri)}")
    click.echo(f"model: {out}  (digest {record.digest})")
