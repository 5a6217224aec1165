"""`boom-ray evaluate`."""

import json
from typing import Any

import click

from boom_ray import storage
from boom_ray.cli.group import main
from boom_ray.errors import BoomError
from boom_ray.runtime import signals


def _template(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from pydantic import TypeAdapter, ValidationError

    from boom_ray.recipe import QueryTemplate

    if value is None:
        return None
    try:
        return TypeAdapter(QueryTemplate).validate_python(value.replace("\\n", "\n"))
    except ValidationError as error:
        raise click.BadParameter(error.errors()[0]["msg"]) from None


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option("--data", metavar="DIR", help="Local tasks: a directory with one, or with directories of them.")
@click.option("--mteb", "names", multiple=True, metavar="NAME", help="A benchmark or a task of mteb's.")
@click.option(
    "--results", default="~/boom-ray/mteb", show_default=True, metavar="URI", help="Where mteb writes."
)
@click.option("--name", metavar="ORG/NAME", help="What mteb's results call the model.")
@click.option(
    "--query-template",
    callback=_template,
    metavar="TEXT",
    help="As in a recipe; the instruction is that of each task of mteb's.",
)
@click.option("--num-cpus", default=1.0, show_default=True, help="Of each task of mteb's.")
@click.option("--num-gpus", default=0.0, show_default=True, help="Of each task of mteb's.")
@click.option("--batch-size", default=32, show_default=True, help="Texts in one forward pass, with mteb.")
@click.option("--json", "json_file", metavar="FILE", help="Write all metrics there as well.")
@signals.heeded()
def evaluate(models: tuple[str, ...], data: str | None, json_file: str | None, **given: Any) -> None:
    """Measure models on tasks of your own, or on those of mteb.

    Local tasks go through mteb as well, unless all are BEIR directories.
    """
    from boom_ray.evaluation import local_tasks, tables
    from boom_ray.runs.scores import mean_scores
    from boom_ray.runs.versions import model_at
    from boom_ray.runtime import cluster
    from boom_ray.runtime.console import console

    found = local_tasks.find(storage.absolute(data)) if data else []
    if not found and not given["names"]:
        raise BoomError("evaluate: nothing to measure on. Give --data DIR, --mteb NAME, or both")
    uris = [model_at(model) for model in models]
    names = [storage.name_of(uri) for uri in uris]
    labels = names if len(set(names)) == len(names) else list(models)
    subjects = dict(zip(labels, uris, strict=True))
    cluster.connect()
    problems: list[str] = []
    if data and not given["names"] and all(task.type == "Retrieval" for task in found):
        results = _retrieval(subjects, data, given)
    else:
        results, problems = _through_mteb(subjects, found, given)
    if any(results.values()):
        console.print(tables.terminal_table(results))
    if json_file:
        means = {label: mean_scores(scores) for label, scores in results.items()}
        content = json.dumps({"evaluation": results, "means": means}, indent=1)
        storage.write_bytes(storage.absolute(json_file), content.encode())
        console.print(f"results: {json_file}")
    if problems:
        raise BoomError.of(problems, "not measured; the same command measures only these again:")


def _retrieval(models: dict[str, str], data: str, given: dict[str, Any]) -> Any:
    from boom_ray.evaluation.measure import Protocol, Subject, evaluate

    if given["name"] or given["query_template"]:
        raise BoomError(
            "--name and --query-template go with --mteb NAME: these tasks are not measured by mteb"
        )
    return evaluate([Subject(label, uri) for label, uri in models.items()], Protocol(storage.absolute(data)))


def _through_mteb(models: dict[str, str], found: list[Any], given: dict[str, Any]) -> tuple[Any, list[str]]:
    """The tasks found in files and those named, as mteb measures them."""
    try:
        from boom_ray.evaluation import mteb_run, mteb_tasks
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise BoomError("mteb is not installed. Run: pip install 'boom-ray[mteb]'") from None
    if given["name"] and (len(models) > 1 or given["name"].count("/") != 1):
        raise BoomError("--name ORG/NAME names one model, with its organization; give the models one by one")
    from boom_ray.runs.scores import MAIN_SCORE

    results = storage.absolute(given["results"])
    chosen = {task.name: mteb_tasks.local(task) for task in found}
    chosen |= {
        f"{task.metadata.type}/{task.metadata.name}": task for task in mteb_tasks.named(given["names"])
    }
    protocol = mteb_run.Protocol(
        *(given[key] for key in ("query_template", "num_cpus", "num_gpus", "batch_size"))
    )
    subjects = [mteb_run.identified(uri, label, given["name"]) for label, uri in models.items()]
    scores, problems = mteb_run.measure(subjects, chosen, protocol, results)
    click.echo(f"results: {results}")
    return {
        label: {name: {MAIN_SCORE: score} for name, score in measured.items()}
        for label, measured in scores.items()
    }, problems
