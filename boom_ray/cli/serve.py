"""`boom-ray serve`."""

from typing import Any

import click

from boom_ray.cli.group import device_option, main


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option("--host", default="127.0.0.1", show_default=True)
@click.option("--port", default=8000, show_default=True)
@click.option("--pass-tokens", type=click.IntRange(min=1), metavar="N", help="Tokens in one forward pass.")
@click.option("--min-replicas", type=click.IntRange(min=1), default=1, show_default=True)
@click.option("--max-replicas", type=click.IntRange(min=1), default=1, show_default=True)
@device_option
@click.option(
    "--gpus-per-replica",
    default=1.0,
    show_default=True,
    metavar="N",
    help="GPUs of each encoder on GPUs; below 1, encoders share a GPU.",
)
@click.option("--start-timeout", default=600.0, show_default=True, metavar="SECONDS", help="For each model.")
@click.option("--config-out", metavar="FILE.yaml", help="Only write a config file for `serve deploy`.")
def serve(models: tuple[str, ...], config_out: str | None, start_timeout: float, **options: Any) -> None:
    """Serve models over HTTP, or switch a running endpoint to new versions.

    A run (STORAGE/NAME) stands for its current version.

    Routes: POST /v1/embeddings (OpenAI), POST /embed (text-embeddings-inference), GET /docs.
    """
    from boom_ray.api import serving

    if config_out:
        serving.serve_config(models, config_out, **options)
        click.echo(f"config: {config_out}  (serve deploy {config_out})")
    else:
        serving.serve(models, blocking=True, start_timeout_s=start_timeout, **options)
