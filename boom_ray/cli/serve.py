"""`boom-ray serve`."""

from typing import Any

import click

from boom_ray.cli.group import main


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option("--pass-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens in one forward pass.")
@click.option("--min-replicas", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--max-replicas", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--device", type=click.Choice(["cpu", "cuda"]), help="By default GPUs if the cluster has some.")
@click.option("--config-out", metavar="FILE.yaml", help="Only write what `serve deploy` takes.")
def serve(models: tuple[str, ...], host: str, port: int, config_out: str | None, **given: Any) -> None:
    """Serve models, or new versions of them where they are served already.

    A run (STORAGE/NAME) stands for its current version.

    POST /v1/embeddings as OpenAI's clients speak it, POST /embed as text-embeddings-inference's, GET /docs.
    """
    from boom_ray.runs.versions import model_at
    from boom_ray.runtime import cluster
    from boom_ray.serve import app, build

    uris, settings = [model_at(model) for model in models], build.Settings(**given)
    if config_out:
        build.write_config(uris, settings, host, port, config_out)
        click.echo(f"config: {config_out}  (serve deploy {config_out})")
        return
    cluster.connect(yielding=False)
    app.serve_models(uris, host, port, settings)
