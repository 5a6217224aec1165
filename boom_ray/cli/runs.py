"""Verbs that make models: run, plan, train, update."""

from typing import Any

import click

from boom_ray import storage
from boom_ray.cli.group import main
from boom_ray.errors import BoomError
from boom_ray.runtime import signals

storage_option = click.option(
    "--storage", "storage_uri", metavar="URI", help="Overrides the recipe's storage."
)


@main.command()
@click.argument("recipe")
@storage_option
@click.option("--baseline", is_flag=True, help="Also train one model on the full corpus, and compare.")
@signals.heeded()
def run(recipe: str, storage_uri: str | None, baseline: bool) -> None:
    """Sample bags, train a model on each, merge them, and measure the result."""
    from boom_ray.recipe import Recipe

    loaded = Recipe.load(recipe, storage_uri)
    from boom_ray.evaluation import compare, tables
    from boom_ray.pipeline.run import run as make
    from boom_ray.runs.layout import Layout
    from boom_ray.runtime.console import console

    result = make(loaded, baseline)
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
@click.option("--price", type=float, metavar="RATE", help="Of one GPU and hour.")
@click.option("--assume", multiple=True, metavar="NAME=VALUE", help="One of the numbers that a plan prints.")
@click.option("--config", "config_file", metavar="FILE", help="The config.json of a base out of reach.")
@click.option("--calibrate", is_flag=True, help="First measure the cluster with the recipe in miniature.")
@click.option("--steps", default=8, show_default=True, type=click.IntRange(min=2), help="Of --calibrate.")
@click.option("--scale", is_flag=True, help="Also plan for clusters of 8 to 4,096 GPUs.")
@storage_option
def plan(recipe: str, storage_uri: str | None, assume: tuple[str, ...], **given: Any) -> None:
    """Work out rows, memory, time, bytes and price of a run, without running it."""
    from boom_ray.planner.assumptions import parse
    from boom_ray.recipe import Recipe

    loaded, numbers = Recipe.load(recipe, storage_uri), parse(assume)
    if given["price"] is not None:
        numbers["price.per_gpu_hour"] = given["price"]
    from boom_ray.planner import plan as planner

    request = planner.Request(given["gpu_type"], given["num_gpus"], given["config_file"], numbers)
    planner.plan(loaded, request, given["steps"] if given["calibrate"] else 0, given["scale"])


@main.command()
@click.argument("recipe")
@click.option("--bag", type=click.IntRange(min=1), metavar="K", help="Train only this bag, counted from 1.")
@storage_option
@signals.heeded()
def train(recipe: str, bag: int | None, storage_uri: str | None) -> None:
    """Train the bags' models that are missing."""
    from boom_ray.recipe import Recipe

    loaded = Recipe.load(recipe, storage_uri)
    if bag is not None and bag > len(loaded.bags.ratios):
        raise BoomError(f"--bag {bag}: the recipe has bags 1 to {len(loaded.bags.ratios)}")
    from boom_ray.pipeline.training import train as train_models

    for uri in train_models(loaded, None if bag is None else bag - 1):
        click.echo(f"model: {uri}")


@main.command()
@click.argument("recipe")
@click.option("--parent", metavar="VERSION", help="What the update adds to; by default the current version.")
@click.option(
    "--new-data", required=True, multiple=True, metavar="URI", help="Rows, or a YAML list of tasks."
)
@click.option("--new-evaluation", metavar="DIR", help="A directory of tasks for the new data.")
@click.option(
    "--core",
    type=click.FloatRange(0, 100, min_open=True),
    default=40.0,
    show_default=True,
    metavar="PERCENT",
    help="Of earlier rows, trained again.",
)
@click.option("--method", metavar="METHOD", help="How the update is merged; by default as in the recipe.")
@click.option("--weights", type=click.Choice(["equal", "mass"]), default="equal", show_default=True)
@click.option(
    "--flat", is_flag=True, help="Merge all models that contribute, not the parent with the update."
)
@click.option(
    "--require", default="", metavar="CONDITIONS", help="Such as 'old_mean >= -0.5%, new_mean >= +1%'."
)
@storage_option
@signals.heeded()
def update(recipe: str, storage_uri: str | None, **given: Any) -> None:
    """Bring new data into a published version: train a small model on it, and merge."""
    from boom_ray.recipe import Recipe

    loaded = Recipe.load(recipe, storage_uri)
    from boom_ray.pipeline.update.make import update as bring_in
    from boom_ray.runs.updates import UpdateRequest, parse_requirements, read_tasks

    tasks = [task for uri in given["new_data"] for task in read_tasks(storage.absolute(uri))]
    request = UpdateRequest(
        parent=given["parent"],
        tasks=tasks,
        core_percent=given["core"],
        method=given["method"],
        weights=given["weights"],
        flat=given["flat"],
        new_evaluation=given["new_evaluation"] and storage.absolute(given["new_evaluation"]),
        requirements=parse_requirements(given["require"]),
    )
    result = bring_in(loaded, request)
    click.echo(f"model:   {result.model}  (digest {result.record.digest})")
