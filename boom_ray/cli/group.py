"""The root command, its error handling, and what several commands share."""

import os
import sys
from typing import Any, get_args

import click

from boom_ray import __version__
from boom_ray.errors import BoomError
from boom_ray.runtime.demand import TIMEOUT_S
from boom_ray.runtime.devices import Device


class _Root(click.Group):
    """Prints a `BoomError` as one message and exits with 1; any other exception is a defect."""

    def invoke(self, context: click.Context) -> Any:
        try:
            return super().invoke(context)
        except BoomError as error:
            click.echo(f"error: {error}", err=True)
            context.exit(1)


class DefaultGroup(click.Group):
    """A group whose command may be left out: `models STORAGE` is `models list STORAGE`."""

    default = "list"

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Resolve a first word that names no command to the default command."""
        known = self.get_command(context, args[0]) is not None
        return super().resolve_command(context, args if known else [self.default, *args])


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
@click.pass_context
def main(context: click.Context) -> None:
    """Make, update and serve text embedding models by bagging and merging, on Ray."""
    from boom_ray.runtime.console import show_log

    context.call_on_close(show_log())


def job(file: str) -> None:
    """Run the command that a script is named after: `jobs/run.py` is `boom-ray run`."""
    command = os.path.basename(file).removesuffix(".py")
    main([command, *sys.argv[1:]], prog_name="boom-ray")


workers_option = click.option("--num-workers", type=click.IntRange(min=1), metavar="N", help="Ray actors.")
device_option = click.option(
    "--device",
    type=click.Choice(get_args(Device)),
    default="auto",
    show_default=True,
    help="Of the models; auto: GPUs if the cluster has any, or its autoscaler may start some.",
)
start_timeout_option = click.option(
    "--start-timeout",
    "start_timeout_s",
    type=click.FloatRange(min=0, min_open=True),
    default=TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for nodes.",
)
