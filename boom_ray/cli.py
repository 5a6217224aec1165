"""The command line: parses, calls, prints. Each verb imports what it needs when it is called."""

import json
import sys
from typing import Any

import click

from boom_ray import __version__, storage
from boom_ray.errors import BoomError


class _Group(click.Group):
    """Prints a user's mistake as one message and exits with 1; any other error is a defect."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BoomError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(1)


@click.group(cls=_Group, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def main() -> None:
    """Make, refresh and serve text embedding models by bagging and merging, on Ray."""


storage_option = click.option(
    "--storage", "storage_uri", metavar="URI", help="Overrides the recipe's storage."
)
workers_option = click.option("--num-workers", type=click.IntRange(min=1), metavar="N", help="Ray actors.")


@main.command()
@click.argument("recipe")
@storage_option
def run(recipe: str, storage_uri: str | None) -> None:
    """Sample bags, train a model on each, merge them, and measure the result."""
    from boom_ray.recipe import load

    loaded = load(recipe, storage_uri)
    from boom_ray import pipeline, session

    session.connect()
    pipeline.run(loaded)


@main.command()
@click.argument("recipe")
@click.option("--bag", type=click.IntRange(min=1), metavar="K", help="Train only this bag, counted from 1.")
@storage_option
def train(recipe: str, bag: int | None, storage_uri: str | None) -> None:
    """Train the bags' models that are missing."""
    from boom_ray.recipe import load

    loaded = load(recipe, storage_uri)
    if bag is not None and bag > len(loaded.bags.ratios):
        raise BoomError(f"--bag {bag}: the recipe has bags 1 to {len(loaded.bags.ratios)}")
    from boom_ray import pipeline, session

    session.connect()
    for uri in pipeline.train(loaded, None if bag is None else bag - 1):
        click.echo(f"model: {uri}")


def _weights(context: click.Context, parameter: click.Parameter, value: str) -> str | list[float]:
    if value in ("equal", "size"):
        return value
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"got {value!r}; allowed: equal, size, or numbers like 1,2,0.5") from None


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL MODEL [MODEL ...]")
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
@workers_option
def merge(
    models: tuple[str, ...],
    out: str,
    method: str,
    weights: Any,
    base_model: str | None,
    dtype: Any,
    num_workers: int | None,
) -> None:
    """Merge models of one architecture into one."""
    from boom_ray import session

    session.connect()
    from boom_ray.merge.actors import MergeSpec
    from boom_ray.merge.run import merge_models

    if len(models) < 2:
        raise BoomError(f"merge needs two models or more; got {len(models)}")
    spec = MergeSpec(method, "deltas" if base_model else "weights", weights, dtype, num_workers or 1)
    base = storage.absolute(base_model) if base_model else None
    merge_models([storage.absolute(model) for model in models], storage.absolute(out), base, spec)


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option("--data", required=True, metavar="DIR", help="A BEIR directory, or a directory of them.")
@click.option("--json", "json_file", metavar="FILE", help="Write all metrics there as well.")
def evaluate(models: tuple[str, ...], data: str, json_file: str | None) -> None:
    """Measure models on retrieval tasks: nDCG@10, MRR@10, recall@100."""
    from boom_ray import report, session
    from boom_ray.evaluate import Protocol, Subject, find_tasks
    from boom_ray.evaluate import evaluate as measure
    from boom_ray.progress import console

    uris = [storage.absolute(model) for model in models]
    names = [storage.name_of(uri) for uri in uris]
    labels = names if len(set(names)) == len(names) else list(models)
    protocol = Protocol(storage.absolute(data))
    find_tasks(protocol.data)
    session.connect()
    results = measure([Subject(label, uri) for label, uri in zip(labels, uris, strict=True)], protocol)
    console.print(report.terminal_table(results))
    if json_file:
        content = {
            "evaluation": results,
            "means": {label: report.means(scores) for label, scores in results.items()},
        }
        storage.write_bytes(storage.absolute(json_file), json.dumps(content, indent=1).encode())
        console.print(f"results: {json_file}")


@main.command()
@click.argument("model")
@click.argument("source", metavar="INPUT")
@click.argument("target", metavar="OUTPUT")
@click.option("--text-column", default="text", show_default=True)
@click.option("--id-column", default="id", show_default=True)
@click.option("--prompt-name", metavar="NAME", help="One of the model's prompts, e.g. query.")
@workers_option
def embed(
    model: str,
    source: str,
    target: str,
    text_column: str,
    id_column: str,
    prompt_name: str | None,
    num_workers: int | None,
) -> None:
    """Embed a directory or file of parquet or jsonl into parquet."""
    from boom_ray import embed as stage
    from boom_ray import session

    model, source, target = (storage.absolute(uri) for uri in (model, source, target))
    session.connect()
    stage.embed(model, source, target, text_column, id_column, prompt_name, num_workers)


@main.command()
@click.argument("model")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
def serve(model: str, host: str, port: int) -> None:
    """Serve a model: POST /v1/embeddings as OpenAI's clients speak it, GET /health."""
    from boom_ray import session
    from boom_ray.serve.app import serve_model

    session.connect()
    serve_model(storage.absolute(model), host, port)


@main.command()
@click.argument("directory", metavar="DIR")
def verify(directory: str) -> None:
    """Check an artifact against its record: every file, every hash."""
    from boom_ray import artifact

    record = artifact.verify(storage.absolute(directory))
    size = sum(entry.size for entry in record.files.values())
    click.echo(f"{directory}: complete: {record.kind} {record.name} {record.version}, "
               f"{len(record.files)} files, {size:,} bytes, digest {record.digest}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
