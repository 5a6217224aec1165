"""One section: `python -m tests.benchmarks.gpu_sections SECTION SCRATCH OUT [--tiny]`."""

import importlib

import click

from tests.benchmarks.gpu_sections.bench import Bench


@click.command()
@click.argument("section")
@click.argument("scratch")
@click.argument("out")
@click.option("--tiny", is_flag=True)
def main(section: str, scratch: str, out: str, tiny: bool) -> None:
    """Run a section; its results are the JSON lines that it prints."""
    importlib.import_module(f"{__package__}.{section}").run(Bench(section, tiny, scratch, out))


main()
