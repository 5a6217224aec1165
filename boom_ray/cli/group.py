"""What all verbs share: the group, how it ends, and an option of several."""

from typing import Any

import click

from boom_ray import __version__
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
    from boom_ray.runtime.console import show_log

    show_log()


workers_option = click.option("--num-workers", type=click.IntRange(min=1), metavar="N", help="Ray actors.")
