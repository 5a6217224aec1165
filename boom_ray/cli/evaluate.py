"""`boom-ray evaluate`."""

import json
from typing import Any

import click

from boom_ray import storage
from boom_ray.cli.group import device_option, main, start_timeout_option
from boom_ray.errors import BoomError
from boom_ray.runtime import signals


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option("--data", metavar="DIR", help="Local tasks: a directory with one, or with directories of them.")
@click.option("--mteb", multiple=True, metavar="NAME", help="A benchmark or a task of mteb.")
@click.option(
    "--results", default="~/boom-ray/mteb", show_default=True, metavar="URI", help="mteb's result files."
)
@click.option("--name", metavar="ORG/NAME", help="The model's name in mteb's result files.")
@click.option(
    "--query-template", metavar="TEXT", help="As in a recipe; mteb has an instruction for each of its tasks."
)
@click.option("--num-cpus", type=float, metavar="N", help="CPUs for each model; default: its share of all.")
@click.option(
    "--num-gpus",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="GPUs for each model on GPUs; default: 1.",
)
@device_option
@click.option("--batch-size", default=32, show_default=True, help="Texts in one forward pass, with mteb.")
@start_timeout_option
@click.option("--json", "json_file", metavar="FILE", help="Write all metrics to this file as well.")
@signals.exit_on_signal()
def evaluate(
    models: tuple[str, ...], query_template: str | None, json_file: str | None, **settings: Any
) -> None:
    """Measure models on local tasks, or on those of mteb.

    Local tasks are measured by mteb as well, unless all are BEIR directories.
    """
    from boom_ray.api.evaluating import evaluate as measure
    from boom_ray.evaluation import tables
    from boom_ray.runtime.console import console

    # A shell passes `\n` as two characters.
    template = query_template and query_template.replace("\\n", "\n")
    result = measure(models, query_template=template, **settings)
    if result.results:
        click.echo(f"results: {result.results}")
    scores = result.scores.results
    for task, counts in result.counts.items():
        click.echo(f"{task}: {', '.join(f'{count:,} {kind}' for kind, count in counts.items())}")
    if any(scores.values()):
        console.print(tables.terminal_table(scores))
    if json_file:
        values = {"evaluation": scores, "means": result.scores.means, "counts": result.counts}
        content = json.dumps(values, indent=1)
        storage.write_bytes(storage.absolute(json_file), content.encode())
        click.echo(f"results: {json_file}")
    if result.problems:  # of any class
        raise BoomError.of(result.problems, "not measured; the same command measures only these again:")
