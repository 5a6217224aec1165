"""Commands that plan and train: run, plan, train, update."""

from typing import Any, get_args

import click

from boom_ray.cli.group import main
from boom_ray.errors import NotFoundError
from boom_ray.recipe import MergeMethod
from boom_ray.runtime import signals

storage_option = click.option(
    "--storage", "storage_uri", metavar="URI", help="Overrides the recipe's storage."
)


def _numbers(context: click.Context, parameter: click.Parameter, pairs: tuple[str, ...]) -> dict[str, float]:
    """Numbers by name, from `name=value` each."""
    numbers = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        try:
            numbers[name.strip()] = float(value)
        except ValueError:
            raise click.BadParameter(
                f"got {pair!r}; expected NAME=NUMBER, such as gpu.efficiency=0.4"
            ) from None
    return numbers


@main.command()
@click.argument("recipe")
@storage_option
@click.option("--baseline", is_flag=True, help="Also train one model on the full corpus, and compare.")
@signals.exit_on_signal()
def run(recipe: str, storage_uri: str | None, baseline: bool) -> None:
    """Sample bags, train a model on each, merge the models, and evaluate the result.

    `boom-ray plan RECIPE` prints what the run takes, without running it.
    """
    from boom_ray.api.making import run as run_pipeline
    from boom_ray.recipe import Recipe
    from boom_ray.runs.layout import Layout
    from boom_ray.runtime.console import console

    result = run_pipeline(Recipe.load(recipe, storage_uri), baseline=baseline)
    from boom_ray.evaluation import compare, tables  # late: a mistake in the recipe appears at once

    if baseline and result.comparison:
        console.print(compare.table(result.comparison))
        click.echo(f"comparison: {Layout(result.root).comparison}")
    if result.scores.results:
        console.print(tables.terminal_table(result.scores.results))
        click.echo(f"results: {Layout(result.root).evaluation}")
    click.echo("Next:")
    click.echo(f"  boom-ray report {result.root}")
    click.echo(f"  boom-ray embed {result.model} INPUT.parquet OUTPUT")
    click.echo(f"  boom-ray serve {result.model}")
    click.echo(f"model:   {result.model}  (digest {result.record.digest})")


@main.command()
@click.argument("recipe")
@click.option("--gpus", "num_gpus", type=click.IntRange(min=1), metavar="N", help="GPUs, or CPUs with cpu.")
@click.option("--gpu-type", metavar="TYPE", help="H100, H200, A100-80, A100-40, L40S, A10G, L4 or cpu.")
@click.option("--price", type=float, metavar="RATE", help="Price of one GPU per hour.")
@click.option(
    "--assume",
    "overrides",
    multiple=True,
    callback=_numbers,
    metavar="NAME=VALUE",
    help="Override an assumption that the plan prints.",
)
@click.option("--config", "config_file", metavar="FILE", help="The base model's config.json.")
@click.option("--baseline", is_flag=True, help="Also plan a model on the full corpus.")
@click.option("--scale", is_flag=True, help="Also plan for clusters of 8 to 4,096 GPUs.")
@click.option("--calibrate", is_flag=True, help="First measure the cluster with the recipe in miniature.")
@click.option(
    "--steps", default=8, show_default=True, type=click.IntRange(min=2), help="Steps of --calibrate."
)
@storage_option
def plan(recipe: str, storage_uri: str | None, calibrate: bool, steps: int, **options: Any) -> None:
    """Print rows, steps, schedule, memory, time, bytes and cost of a run, without running it.

    Needs neither Ray nor the base model's weights, except to --calibrate.
    """
    from boom_ray.api.making import plan as make_plan
    from boom_ray.planner.shape import ConfigNotFoundError
    from boom_ray.recipe import Recipe

    loaded = Recipe.load(recipe, storage_uri)
    try:
        made = make_plan(loaded, calibrate_steps=steps if calibrate else 0, **options)
    except ConfigNotFoundError as error:
        raise NotFoundError(f"{error} (--config FILE, --assume NAME=VALUE)") from None
    for line in made.lines():
        click.echo(line)


@main.command()
@click.argument("recipe")
@click.option("--bag", type=click.IntRange(min=1), metavar="K", help="Train only this bag, counted from 1.")
@storage_option
@signals.exit_on_signal()
def train(recipe: str, bag: int | None, storage_uri: str | None) -> None:
    """Train the models of bags that are missing."""
    from boom_ray.api.making import train as train_models
    from boom_ray.recipe import Recipe

    for uri in train_models(Recipe.load(recipe, storage_uri), bag=bag):
        click.echo(f"model: {uri}")


@main.command()
@click.argument("recipe")
@click.option("--parent", metavar="VERSION", help="The version to update; by default the current one.")
@click.option(
    "--new-data", required=True, multiple=True, metavar="URI", help="Rows, or a YAML list of tasks."
)
@click.option("--new-evaluation", metavar="DIR", help="A directory of tasks for the new data.")
@click.option(
    "--core",
    "core_percent",
    type=click.FloatRange(0, 100, min_open=True),
    default=40.0,
    show_default=True,
    metavar="PERCENT",
    help="Percentage of the earlier rows to train on again.",
)
@click.option(
    "--method",
    type=click.Choice(get_args(MergeMethod)),
    help="How the update is merged; default: as in the recipe.",
)
@click.option("--weights", type=click.Choice(["equal", "mass"]), default="equal", show_default=True)
@click.option(
    "--flat", is_flag=True, help="Merge all contributing models instead of the parent and the update."
)
@click.option(
    "--scale",
    default=1.0,
    show_default=True,
    help="Strength of the update: 0 is the parent, 1 the merge; it may exceed 1.",
)
@click.option(
    "--require",
    "requirements",
    default="",
    metavar="CONDITIONS",
    help="Such as 'old_mean >= -0.5%, new_mean >= +1%'.",
)
@storage_option
@signals.exit_on_signal()
def update(recipe: str, storage_uri: str | None, **options: Any) -> None:
    """Train a small model on new data, and merge it into a published version as the next version."""
    from boom_ray.api.making import update as run_update
    from boom_ray.recipe import Recipe

    result = run_update(Recipe.load(recipe, storage_uri), **options)
    click.echo(f"model:   {result.model}  (digest {result.record.digest})")
