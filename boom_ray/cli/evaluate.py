"""`boom-ray evaluate`."""

import json
from typing import Any

import click

from boom_ray import storage
from boom_ray.cli.group import main
from boom_ray.errors import BoomError, InputError
from boom_ray.runtime import signals


def _template(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    from pydantic import TypeAdapter, ValidationError

    from boom_ray.recipe import QueryTemplate

    if value is None:
        return None
    try:
        # A shell passes `\n` as two characters.
        return TypeAdapter(QueryTemplate).validate_python(value.replace("\\n", "\n"))
    except ValidationError as error:
        raise click.BadParameter(error.errors()[0]["msg"]) from None


@main.command()
@click.argument("models", nargs=-1, required=True, metavar="MODEL [MODEL ...]")
@click.option("--data", metavar="DIR", help="Local tasks: a directory with one, or with directories of them.")
@click.option("--mteb", "names", multiple=True, metavar="NAME", help="A benchmark or a task of mteb.")
@click.option(
    "--results", default="~/boom-ray/mteb", show_default=True, metavar="URI", help="mteb's result files."
)
@click.option("--name", metavar="ORG/NAME", help="The model's name in mteb's result files.")
@click.option(
    "--query-template",
    callback=_template,
    metavar="TEXT",
    help="As in a recipe; mteb has an instruction for each of its tasks.",
)
@click.option("--num-cpus", default=1.0, show_default=True, help="CPUs for one model on one task.")
@click.option("--num-gpus", default=0.0, show_default=True, help="GPUs for one model on one task.")
@click.option("--batch-size", default=32, show_default=True, help="Texts in one forward pass, with mteb.")
@click.option("--json", "json_file", metavar="FILE", help="Write all metrics to this file as well.")
@signals.heeded()
def evaluate(
    models: tuple[str, ...],
    data: str | None,
    names: tuple[str, ...],
    results: str,
    name: str | None,
    json_file: str | None,
    **settings: Any,
) -> None:
    """Measure models on local tasks, or on those of mteb.

    Local tasks are measured by mteb as well, unless all are BEIR directories.
    """
    from boom_ray.evaluation import local_tasks, tables
    from boom_ray.evaluation.measure import measure, scores_of
    from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
    from boom_ray.runs.scores import mean_scores
    from boom_ray.runs.versions import model_at
    from boom_ray.runtime import cluster
    from boom_ray.runtime.console import console

    local = local_tasks.find(storage.absolute(data)) if data else []
    if not local and not names:
        raise InputError("evaluate: nothing to measure on. Give --data DIR, --mteb NAME, or both")
    by_mteb = bool(names) or any(task.type != "Retrieval" for task in local)
    _check_options(by_mteb, name, len(models), settings["query_template"])
    uris = [model_at(model) for model in models]
    cluster.connect()
    tasks = _mteb_tasks(local, names) if by_mteb else _local_tasks(local)
    cache = storage.absolute(results) if by_mteb else None
    subjects = [Subject(label, uri, hub_name=name) for label, uri in _labelled(models, uris).items()]
    problems: list[str] = []
    measured = measure(subjects, tasks, EvaluationProtocol(**settings), cache, problems if by_mteb else None)
    if cache:
        click.echo(f"results: {cache}")
    scores = scores_of(measured)
    if any(scores.values()):
        console.print(tables.terminal_table(scores))
    if json_file:
        means = {label: mean_scores(of_tasks) for label, of_tasks in scores.items()}
        content = json.dumps({"evaluation": scores, "means": means}, indent=1)
        storage.write_bytes(storage.absolute(json_file), content.encode())
        click.echo(f"results: {json_file}")
    if problems:  # of any class
        raise BoomError.of(problems, "not measured; the same command measures only these again:")


def _check_options(by_mteb: bool, name: str | None, num_models: int, query_template: str | None) -> None:
    if not by_mteb and (name or query_template):
        raise InputError(
            "--name and --query-template require --mteb NAME: these tasks are not measured by mteb"
        )
    if name and (num_models > 1 or name.count("/") != 1):
        raise InputError(
            f"--name {name} for {num_models} models: expected ORG/NAME, the name of one model. Measure one "
            "model after the other"
        )


def _labelled(models: tuple[str, ...], uris: list[str]) -> dict[str, str]:
    """URIs by label: the last parts of their paths, or the arguments where those are not distinct."""
    names = [storage.name_of(uri) for uri in uris]
    return dict(zip(names if len(set(names)) == len(names) else models, uris, strict=True))


def _local_tasks(local: list[Any]) -> list[Any]:
    from boom_ray.evaluation.local_run import LocalEvaluationTask

    return [LocalEvaluationTask(task.name, task) for task in local]


def _mteb_tasks(local: list[Any], names: tuple[str, ...]) -> list[Any]:
    """The local tasks and the named ones, all measured by mteb."""
    try:
        from boom_ray.evaluation.mteb_run import tasks_named, through_mteb
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise InputError("mteb is not installed. Run: pip install 'boom-ray[mteb]'") from None
    return [*through_mteb(local), *tasks_named(names)]
