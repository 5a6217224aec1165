"""`boom-ray merge`."""

from typing import Any

import click

from boom_ray import storage
from boom_ray.cli.group import main, workers_option
from boom_ray.errors import BoomError
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
@click.option("--out", required=True, metavar="DIR", help="Where the merged model is published.")
@click.option("--method", default="multislerp", show_default=True)
@click.option(
    "--weights", default="equal", callback=_weights, metavar="equal|size|W,W,...", show_default=True
)
@click.option(
    "--base-model", metavar="DIR", help="Merge the differences to this model instead of the weights."
)
@click.option(
    "--dtype", type=click.Choice(["float32", "bfloat16", "float16"]), default="bfloat16", show_default=True
)
@click.option("--scale", default=1.0, help="Factor on the difference: task_arithmetic, ties, dare_linear.")
@click.option("--iterations", default=10, help="Steps of karcher; 1 is the paper's formula.")
@click.option("--density", default=0.5, help="Fraction of a difference that is kept: ties, dare_linear.")
@click.option("--seed", default=0, help="Of dare_linear's choice.")
@click.option("--mergekit-config", metavar="FILE", help="Models and method from a YAML file of mergekit's.")
@click.option("--report", metavar="FILE.json", help="Write how far apart the models lie, and a picture.")
@click.option("--search", is_flag=True, help="Choose method and weights by a development set.")
@click.option("--data", metavar="DIR", help="The development set: a directory of tasks.")
@click.option("--trials", default=12, type=click.IntRange(min=1), help="How many merges a search tries.")
@click.option("--memory", default=1.0, metavar="GIB", help="Memory of a worker.", show_default=True)
@workers_option
@signals.heeded()
def merge(**given: Any) -> None:
    """Merge models of one architecture into one."""
    from boom_ray.runtime import cluster

    if given["search"] != bool(given["data"]):
        raise BoomError("--search and --data DIR go together: a search chooses by the data")
    if given["mergekit_config"] and given["models"]:
        raise BoomError("give models, or --mergekit-config FILE which names them; not both")
    models, base, spec = _merge_of(given)
    if len(models) < 2:
        raise BoomError(f"merge needs two models or more; got {len(models)}")
    cluster.connect(dashboard=False)
    _merge(models, base, spec, given)


def _merge_of(given: dict[str, Any]) -> tuple[list[str], str | None, Any]:
    """What is merged and how, from the options or from a file of mergekit's."""
    from dataclasses import replace

    from boom_ray.merge import mergekit
    from boom_ray.merge.actors import MergeSpec
    from boom_ray.merge.methods import Options

    if given["mergekit_config"]:
        models, base, spec = mergekit.read(given["mergekit_config"])
    else:
        models = [storage.absolute(model) for model in given["models"]]
        base = storage.absolute(given["base_model"]) if given["base_model"] else None
        options = Options(given["scale"], given["iterations"], given["density"], given["seed"])
        spec = MergeSpec(given["method"], "deltas" if base else "weights", given["weights"], given["dtype"])
        spec = replace(spec, options=options)
    memory_bytes = int(given["memory"] * (1 << 30))
    return models, base, replace(spec, num_workers=given["num_workers"] or 1, memory_bytes=memory_bytes)


def _merge(models: list[str], base: str | None, spec: Any, given: dict[str, Any]) -> None:
    out = storage.absolute(given["out"])
    if given["search"]:
        from boom_ray.pipeline.merge_search import search

        record, products = search(models, out, base, spec, storage.absolute(given["data"]), given["trials"])
    else:
        from boom_ray.pipeline.publish import merge_models

        record, merged = merge_models(models, out, base, spec)
        products = merged.products
    if given["report"]:
        from boom_ray.merge import distances

        report = distances.distances([storage.name_of(model) for model in models], spec.space, products)
        place = storage.absolute(given["report"])
        click.echo(f"report: {place}, {distances.write(report, place)}")
    click.echo(f"model: {out}  (digest {record.digest})")
