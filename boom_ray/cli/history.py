"""Verbs that tell of what was made: status, models, lineage, report, reproduce, verify."""

import json

import click

from boom_ray import storage
from boom_ray.cli.group import main
from boom_ray.errors import BoomError
from boom_ray.runtime import signals


@main.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "json_file", metavar="FILE", help="Write it there as well, for machines.")
def status(run: str, json_file: str | None) -> None:
    """Tell what of a run (STORAGE/NAME) is done, under way or failed, from its storage alone.

    Ends with 0 if all is done or in progress, and with 1 if it failed, was stopped, or died.
    """
    from dataclasses import asdict

    from boom_ray.runs.status import read
    from boom_ray.runtime.console import console

    found = read(storage.absolute(run))
    if json_file:
        storage.write_bytes(storage.absolute(json_file), json.dumps(asdict(found), indent=1).encode())
    if console.is_terminal:
        console.print(found.table())
    else:
        for name, state, detail in found.rows():
            click.echo(": ".join(filter(None, (name, state, detail))))
    if not found.is_well:
        raise BoomError(f"{found.root}: {found.state}: {found.reason}")


@main.command()
@click.argument(
    "words", nargs=-1, required=True, metavar="STORAGE | RUN | diff MODEL MODEL | rollback RUN VERSION"
)
def models(words: tuple[str, ...]) -> None:
    """List versions, compare two models, or make an older version current.

    STORAGE lists the versions of all runs, STORAGE/NAME those of one.
    """
    from boom_ray.runs import versions
    from boom_ray.runtime.console import console

    match words:
        case ("diff", one, other):
            for line in versions.diff(versions.model_at(one), versions.model_at(other)):
                click.echo(line)
        case ("rollback", root, version):
            versions.roll_back(storage.absolute(root), version)
            click.echo(f"current: {version}")
        case (place,):
            for root in versions.runs(storage.absolute(place)):
                console.print(versions.table(root))
        case _:
            raise BoomError("models: expected STORAGE, or RUN, or diff MODEL MODEL, or rollback RUN VERSION")


@main.command()
@click.argument("model")
def lineage(model: str) -> None:
    """Draw what a model was made from, down to corpus and base."""
    from boom_ray.runs.ancestry import tree
    from boom_ray.runs.versions import model_at
    from boom_ray.runtime.console import console

    console.print(tree(model_at(model)))


@main.command()
@click.argument("run", metavar="RUN")
@click.option("--version", metavar="VERSION", help="By default the current one.")
@click.option("--out", metavar="FILE.html", help="By default report-VERSION.html in the run's directory.")
def report(run: str, version: str | None, out: str | None) -> None:
    """Write a page about a run (STORAGE/NAME): quality, data, training, merge, time and cost, lineage."""
    from boom_ray.report.render import write

    click.echo(f"report: {write(storage.absolute(run), version, out and storage.absolute(out))}")


@main.command()
@click.argument("model")
@click.option("--scratch", metavar="DIR", help="Where it is made again; by default a temporary directory.")
@signals.heeded()
def reproduce(model: str, scratch: str | None) -> None:
    """Train and merge a version again from its record, and compare the digests."""
    import tempfile

    from boom_ray.pipeline.reproduce import reproduce as make_again
    from boom_ray.runs.versions import model_at

    with tempfile.TemporaryDirectory(prefix="boom-ray-reproduce-") as temporary:
        original, copy = make_again(model_at(model), storage.absolute(scratch or temporary))
    if original.digest != copy.digest:
        different = [name for name in original.files if copy.files.get(name) != original.files[name]]
        raise BoomError(
            f"{model}: digest {original.digest}, made again {copy.digest}; {', '.join(different)} differ"
        )
    click.echo(f"{model}: made again with the same digest, {copy.digest}")


@main.command()
@click.argument("directory", metavar="DIR")
def verify(directory: str) -> None:
    """Check an artifact against its record: every file, every hash."""
    from boom_ray import artifacts

    record = artifacts.verify(storage.absolute(directory))
    size = sum(entry.size for entry in record.files.values())
    click.echo(f"{directory}: complete: {record.kind} {record.name} {record.version}, "
               f"{len(record.files)} files, {size:,} bytes, digest {record.digest}")  # fmt: skip
