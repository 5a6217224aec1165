"""Verbs that embed files: embed, drift."""

from typing import Any

import click

from boom_ray import storage
from boom_ray.cli.group import main, workers_option
from boom_ray.runtime import signals


def _columns(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


@main.command()
@click.argument("model")
@click.argument("source", metavar="INPUT")
@click.argument("target", metavar="OUTPUT")
@click.option("--text-column", default="text", show_default=True)
@click.option("--id-column", default="id", show_default=True)
@click.option("--columns", default="", callback=_columns, metavar="A,B", help="Columns to carry along.")
@click.option("--filter", metavar="CONDITION", help="Only rows such as `lang == 'en' and stars > 3`.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first rows.")
@click.option("--empty-text", type=click.Choice(["refuse", "embed"]), default="refuse", show_default=True)
@click.option("--prompt-name", metavar="NAME", help="One of the model's prompts, e.g. query.")
@click.option("--prompt", metavar="TEXT", help="A prompt by its text.")
@click.option("--dimensions", type=click.IntRange(min=1), metavar="D", help="Cut embeddings, and normalize.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "int8", "binary"]),
    default="float32",
    show_default=True,
)
@click.option("--chunk", type=click.IntRange(min=8), metavar="TOKENS", help="Cut long texts into pieces.")
@click.option("--overlap", type=click.IntRange(min=0), default=0, metavar="N", help="Tokens pieces share.")
@click.option("--chunk-output", type=click.Choice(["mean", "each"]), default="mean", show_default=True)
@click.option("--since", multiple=True, metavar="OUTPUT", help="Only rows that this earlier output has not.")
@click.option("--chunk-tokens", default=8192, show_default=True, help="Padded tokens in one forward pass.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the computation; by default bfloat16 on GPUs, on CPUs the faster that gives the same vectors.",
)
@workers_option
@signals.heeded()
def embed(model: str, source: str, target: str, **given: Any) -> None:
    """Embed parquet, jsonl, csv or text files into parquet."""
    from boom_ray.embed.options import Options
    from boom_ray.embed.run import embed as run_stage
    from boom_ray.runs.versions import model_at
    from boom_ray.runtime import cluster

    options = Options(**{**given, "since": tuple(map(storage.absolute, given["since"]))})
    model, source, target = model_at(model), storage.absolute(source), storage.absolute(target)
    cluster.connect()
    record = run_stage(model, source, target, options)
    made = record.config
    click.echo(f"embedded: {made.rows:,} rows, {made.tokens:,} tokens in {made.seconds:,.0f} s; "
               f"{made.dimensions} dimensions, {made.dtype} ({made.precision} inside)")  # fmt: skip
    if given["since"]:
        click.echo(f"since: {made.unchanged:,} rows unchanged, {made.gone:,} ids gone")
    click.echo(f"output: {target}  (digest {record.digest})")


@main.command()
@click.argument("model_a", metavar="MODEL_A")
@click.argument("model_b", metavar="MODEL_B")
@click.option(
    "--data", required=True, metavar="URI", help="Texts to compare on: parquet, jsonl, csv or text."
)
@click.option("--text-column", default="text", show_default=True)
@click.option("--id-column", default="id", show_default=True)
@click.option(
    "--rows", default=1000, show_default=True, type=click.IntRange(min=20), help="Size of the sample."
)
@signals.heeded()
def drift(model_a: str, model_b: str, data: str, **given: Any) -> None:
    """How far the vectors of one model lie from those of another: must an index be built again?"""
    from boom_ray.embed.drift import drift as measure
    from boom_ray.runs.versions import model_at
    from boom_ray.runtime import cluster

    model_a, model_b, data = model_at(model_a), model_at(model_b), storage.absolute(data)
    cluster.connect()
    for line in measure(model_a, model_b, data, **given).lines():
        click.echo(line)
