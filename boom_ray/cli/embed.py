"""Verbs that embed files: embed, drift."""

from typing import Any

import click

from boom_ray.cli.group import device_option, main, start_timeout_option, workers_option
from boom_ray.runtime import signals


def _columns(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


@main.command()
@click.argument("model")
@click.argument("source", metavar="INPUT")
@click.argument("target", metavar="OUTPUT")
@click.option("--text-column", default="text", show_default=True)
@click.option("--id-column", metavar="NAME", help="Default: id; where there is none, ids are file:row.")
@click.option("--columns", default="", callback=_columns, metavar="A,B", help="Input columns to copy.")
@click.option("--filter", metavar="CONDITION", help="Only rows such as `lang == 'en' and stars > 3`.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Embed at most N rows.")
@click.option("--empty-text", type=click.Choice(["refuse", "embed"]), default="refuse", show_default=True)
@click.option("--no-tokens", type=click.Choice(["refuse", "zeros"]), default="refuse", show_default=True)
@click.option("--prompt-name", metavar="NAME", help="A prompt of the model; default: that of documents.")
@click.option("--prompt", metavar="TEXT", help="A prompt by its text.")
@click.option("--dimensions", type=click.IntRange(min=1), metavar="D", help="Leading dimensions to keep.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "int8", "uint8", "binary", "ubinary"]),
    default="float32",
    show_default=True,
)
@click.option("--chunk", type=click.IntRange(min=8), metavar="TOKENS", help="Split long texts into chunks.")
@click.option("--overlap", type=click.IntRange(min=0), default=0, metavar="N", help="Tokens chunks share.")
@click.option("--chunk-output", type=click.Choice(["mean", "each"]), default="mean", show_default=True)
@click.option("--since", multiple=True, metavar="OUTPUT", help="Skip rows that this earlier output contains.")
@click.option(
    "--chunk-tokens",
    type=click.IntRange(min=1),
    metavar="N",
    help="Tokens in one pass, padding included; default: 8192 on CPUs, 65536 on GPUs.",
)
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the computation; default: bfloat16 on GPUs, on CPUs the faster if the vectors agree.",
)
@device_option
@start_timeout_option
@workers_option
@signals.exit_on_signal()
def embed(model: str, source: str, target: str, **values: Any) -> None:
    """Embed the texts of parquet, jsonl, csv or text files into parquet."""
    from boom_ray.api.embedding import embed as embed_texts

    result = embed_texts(model, source, target, **values)
    made = result.record.config
    click.echo(f"embedded: {made.rows:,} rows, {made.tokens:,} tokens in {made.seconds:,.0f} s; "
               f"{made.dimensions} dimensions, {made.dtype} ({made.precision} inside)")  # fmt: skip
    if values["since"]:
        click.echo(f"since: {made.unchanged:,} rows unchanged, {len(made.deleted):,} ids deleted")
    click.echo(f"output: {result.vectors}  (digest {result.record.digest})")


@main.command()
@click.argument("model_a", metavar="MODEL_A")
@click.argument("model_b", metavar="MODEL_B")
@click.option(
    "--data", required=True, metavar="URI", help="Texts to compare on: parquet, jsonl, csv or text."
)
@click.option("--text-column", default="text", show_default=True)
@click.option("--id-column", metavar="NAME", help="Default: id; where there is none, ids are file:row.")
@click.option(
    "--rows", default=1000, show_default=True, type=click.IntRange(min=20), help="Size of the sample."
)
@signals.exit_on_signal()
def drift(model_a: str, model_b: str, data: str, **options: Any) -> None:
    """Compare the vectors of two models: must an index be built again?"""
    from boom_ray.api.embedding import drift as measure

    for line in measure(model_a, model_b, data, **options).lines():
        click.echo(line)
