"""Commands about runs and models: status, models, lineage, report, reproduce, verify."""

import json

import click

from boom_ray import storage
from boom_ray.cli.group import DefaultGroup, main
from boom_ray.runtime import signals


@main.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "json_file", metavar="FILE", help="Also write the status as JSON.")
def status(run: str, json_file: str | None) -> None:
    """Report which parts of a run (STORAGE/NAME) are done, running or failed, from its storage alone.

    Exits with 0 if all is done or in progress, and with 1 if the run failed, stopped, or its driver died.
    """
    from dataclasses import asdict

    from boom_ray.api import history
    from boom_ray.runtime.console import console

    found = history.status(run)
    if json_file:
        storage.write_bytes(storage.absolute(json_file), json.dumps(asdict(found), indent=1).encode())
    if console.is_terminal:
        console.print(found.table())
    else:
        for name, state, detail in found.rows():
            click.echo(": ".join(filter(None, (name, state, detail))))
    if not found.is_well:
        click.echo(f"error: {found.root}: {found.state}: {found.reason}", err=True)
        click.get_current_context().exit(1)


@main.group(cls=DefaultGroup)
def models() -> None:
    """List versions, compare two models, or make an older version current.

    `boom-ray models STORAGE` is short for `boom-ray models list STORAGE`.
    """


@models.command("list")
@click.argument("uri", metavar="STORAGE|RUN")
def list_versions(uri: str) -> None:
    """List the versions of a run (STORAGE/NAME), or of all runs in a storage."""
    from boom_ray.api import history
    from boom_ray.runtime.console import console

    for table in history.models(uri).tables():
        console.print(table)


@models.command()
@click.argument("model_a", metavar="A")
@click.argument("model_b", metavar="B")
def diff(model_a: str, model_b: str) -> None:
    """Compare configuration, parents, tensors and scores of two models."""
    from boom_ray.api import history

    for line in history.diff(model_a, model_b):
        click.echo(line)


@models.command()
@click.argument("run", metavar="RUN")
@click.argument("version", metavar="VERSION")
def rollback(run: str, version: str) -> None:
    """Make an older version of a run current, until a new one is published."""
    from boom_ray.api import history

    history.rollback(run, version)
    click.echo(f"current: {version}")


@main.command()
@click.argument("model")
def lineage(model: str) -> None:
    """Draw the ancestry of a model, down to the corpus and the base model."""
    from boom_ray.api import history
    from boom_ray.runtime.console import console

    console.print(history.lineage(model).tree())


@main.command()
@click.argument("run", metavar="RUN")
@click.option("--version", metavar="VERSION", help="By default the current one.")
@click.option("--out", metavar="FILE.html", help="By default report-VERSION.html in the run's directory.")
def report(run: str, version: str | None, out: str | None) -> None:
    """Write an HTML page about a run (STORAGE/NAME): quality, data, training, merge, cost, lineage."""
    from boom_ray.api import history

    click.echo(f"report: {history.report(run, version, out)}")


@main.command()
@click.argument("model")
@click.option("--scratch", metavar="DIR", help="Working directory; by default a temporary one.")
@signals.exit_on_signal()
def reproduce(model: str, scratch: str | None) -> None:
    """Train and merge a version again from its record, and compare the digests."""
    from boom_ray.api import history

    copy = history.reproduce(model, scratch).copy
    click.echo(f"{model}: reproduced with the same digest, {copy.digest}")


@main.command()
@click.argument("directory", metavar="DIR")
def verify(directory: str) -> None:
    """Check an artifact against its record: every file, every hash."""
    from boom_ray.api import history

    record = history.verify(directory)
    size = sum(entry.size for entry in record.files.values())
    click.echo(
        f"{directory}: complete: {record.kind} {record.name} {record.version}, "
        f"{len(record.files)} files, {size:,} bytes, digest {record.digest}"
    )
