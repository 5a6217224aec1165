"""`boom-ray merge`."""

from typing import Any, get_args

import click

from boom_ray.cli.group import main, start_timeout_option, workers_option
from boom_ray.recipe import MergeMethod, SaveDtype
from boom_ray.runtime import signals


def _weights(context: click.Context, parameter: click.Parameter, value: str) -> str | list[float]:
    if value in ("equal", "size"):
        return value
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"got {value!r}; allowed: equal, size, or numbers like 1,2,0.5") from None


def _scale(context: click.Context, parameter: click.Parameter, value: str) -> str | float:
    try:
        return value if value == "auto" else float(value)
    except ValueError:
        raise click.BadParameter(f"got {value!r}; allowed: auto, or a number like 1.25") from None


@main.command()
@click.argument("models", nargs=-1, metavar="MODEL MODEL [MODEL ...]")
@click.option("--out", required=True, metavar="DIR", help="Directory that the merged model is published to.")
@click.option("--method", type=click.Choice(get_args(MergeMethod)), default="multislerp", show_default=True)
@click.option(
    "--weights", default="equal", callback=_weights, metavar="equal|size|W,W,...", show_default=True
)
@click.option(
    "--base-model",
    "base",
    metavar="DIR",
    help="Merge task vectors from this base model instead of the weights.",
)
@click.option("--dtype", type=click.Choice(get_args(SaveDtype)), default="bfloat16", show_default=True)
@click.option(
    "--scale",
    default="1.0",
    callback=_scale,
    metavar="NUMBER|auto",
    show_default=True,
    help="Factor on the merged task vector; auto: chosen by the development tasks.",
)
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
@click.option(
    "--as-adapter",
    "adapter_rank",
    type=click.IntRange(min=1),
    metavar="RANK",
    help="Merge adapters into one of at most this rank.",
)
@click.option("--mergekit-config", metavar="FILE", help="Models and method from a YAML file of mergekit.")
@click.option("--report", metavar="FILE.json", help="Write the distances between the models, and a picture.")
@click.option(
    "--search",
    is_flag=True,
    help="Choose the coefficients of models and groups of layers by the development tasks.",
)
@click.option("--trials", default=40, type=click.IntRange(min=9), help="Most merges that a search measures.")
@click.option(
    "--learn", is_flag=True, help="Learn a coefficient per model and group of layers from development tasks."
)
@click.option("--data", "development", metavar="DIR", help="Development tasks, to choose by or learn from.")
@click.option("--test", metavar="DIR", help="Other tasks: compare the choice with the merge without one.")
@click.option("--learn-steps", default=60, type=click.IntRange(min=1), help="Optimizer steps of --learn.")
@click.option(
    "--num-gpus", default=0.0, type=click.FloatRange(min=0), help="GPUs of a process that learns or measures."
)
@click.option(
    "--memory",
    "memory_gib",
    default=1.0,
    type=click.FloatRange(min=0.5),
    metavar="GIB",
    help="Memory of a worker.",
    show_default=True,
)
@workers_option
@start_timeout_option
@signals.exit_on_signal()
def merge(report: str | None, num_workers: int | None, **options: Any) -> None:
    """Merge models of one architecture into one."""
    from boom_ray.api.merging import merge as merge_models

    result = merge_models(num_workers=num_workers or 1, **options)
    if report:
        click.echo(f"report: {', '.join(result.write_distances(report))}")
    click.echo(f"model: {result.model}  (digest {result.record.digest})")
