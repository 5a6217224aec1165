"""The command line: parses, calls, prints. Each verb imports what it needs when it is called."""

import json
import sys
from typing import Any

import click

from boom_ray import __version__, stop, storage
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
@click.option("--baseline", is_flag=True, help="Also train one model on the full corpus, and compare.")
@click.option("--dry-run", is_flag=True, help="Only print bags, rows, steps, the schedule and the cost.")
@click.option("--ranks", type=click.IntRange(min=1), metavar="N", help="Ranks a dry run plans for.")
@stop.heeded()
def run(recipe: str, storage_uri: str | None, baseline: bool, dry_run: bool, ranks: int | None) -> None:
    """Sample bags, train a model on each, merge them, and measure the result."""
    from boom_ray.recipe import load

    if ranks and not dry_run:
        raise BoomError("--ranks goes with --dry-run: a run takes what the cluster has")
    loaded = load(recipe, storage_uri)
    from boom_ray import pipeline

    if dry_run:
        pipeline.plan(loaded, ranks, baseline)
    else:
        pipeline.run(loaded, baseline)


@main.command()
@click.argument("recipe")
@click.option("--gpus", "num_gpus", type=click.IntRange(min=1), metavar="N", help="GPUs, or CPUs with cpu.")
@click.option("--gpu-type", metavar="TYPE", help="H100, H200, A100-80, A100-40, L40S, A10G, L4 or cpu.")
@click.option("--price", type=float, metavar="RATE", help="Of one GPU and hour.")
@click.option("--assume", multiple=True, metavar="NAME=VALUE", help="One of the numbers that a plan prints.")
@click.option("--config", "config_file", metavar="FILE", help="The config.json of a base out of reach.")
@click.option("--calibrate", is_flag=True, help="First measure the cluster with the recipe in miniature.")
@click.option("--steps", default=8, show_default=True, type=click.IntRange(min=2), help="Of --calibrate.")
@click.option("--scale", is_flag=True, help="Also plan for clusters of 8 to 4,096 GPUs.")
@storage_option
def plan(recipe: str, storage_uri: str | None, assume: tuple[str, ...], **given: Any) -> None:
    """Work out rows, memory, time, bytes and price of a run, without running it."""
    from boom_ray.planner.assumptions import parse
    from boom_ray.recipe import load

    loaded, numbers = load(recipe, storage_uri), parse(assume)
    if given["price"] is not None:
        numbers["price.per_gpu_hour"] = given["price"]
    from boom_ray.planner import plan as planner

    request = planner.Request(given["gpu_type"], given["num_gpus"], given["config_file"], numbers)
    planner.plan(loaded, request, given["steps"] if given["calibrate"] else 0, given["scale"])


@main.command()
@click.argument("recipe")
@click.option("--bag", type=click.IntRange(min=1), metavar="K", help="Train only this bag, counted from 1.")
@storage_option
@stop.heeded()
def train(recipe: str, bag: int | None, storage_uri: str | None) -> None:
    """Train the bags' models that are missing."""
    from boom_ray.recipe import load

    loaded = load(recipe, storage_uri)
    if bag is not None and bag > len(loaded.bags.ratios):
        raise BoomError(f"--bag {bag}: the recipe has bags 1 to {len(loaded.bags.ratios)}")
    from boom_ray import pipeline

    for uri in pipeline.train(loaded, None if bag is None else bag - 1):
        click.echo(f"model: {uri}")


@main.command()
@click.argument("recipe")
@click.option(
    "--parent", default="v0001", show_default=True, metavar="VERSION", help="What the update adds to."
)
@click.option(
    "--new-data", required=True, multiple=True, metavar="URI", help="Rows, or a YAML list of tasks."
)
@click.option("--new-evaluation", metavar="DIR", help="BEIR directories for the new data.")
@click.option(
    "--core", default=40.0, show_default=True, metavar="PERCENT", help="Of earlier rows, trained again."
)
@click.option("--weights", type=click.Choice(["equal", "mass"]), default="equal", show_default=True)
@click.option(
    "--flat", is_flag=True, help="Merge all models that contribute, not the parent with the update."
)
@click.option(
    "--require", default="", metavar="CONDITIONS", help="Such as 'old_mean >= -0.5%, new_mean >= +1%'."
)
@storage_option
@stop.heeded()
def update(recipe: str, storage_uri: str | None, **given: Any) -> None:
    """Bring new data into a published version: train a small model on it, and merge."""
    from boom_ray.recipe import load

    loaded = load(recipe, storage_uri)
    from boom_ray import update as stage

    tasks = [task for uri in given["new_data"] for task in stage.read_tasks(storage.absolute(uri))]
    request = stage.Request(
        parent=given["parent"],
        tasks=tasks,
        core_percent=given["core"],
        weights=given["weights"],
        flat=given["flat"],
        new_evaluation=given["new_evaluation"] and storage.absolute(given["new_evaluation"]),
        requirements=stage.parse_requirements(given["require"]),
    )
    stage.update(loaded, request)


@main.command()
@click.argument("run", metavar="RUN")
@click.option("--json", "json_file", metavar="FILE", help="Write it there as well, for machines.")
def status(run: str, json_file: str | None) -> None:
    """Tell what of a run (STORAGE/NAME) is done, under way or failed, from its storage alone.

    Ends with 0 if all is done or in progress, and with 1 if it failed, was stopped, or died.
    """
    from dataclasses import asdict

    from boom_ray.progress import console
    from boom_ray.status import read

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
@click.argument("words", nargs=-1, required=True, metavar="RUN | diff MODEL MODEL | rollback RUN VERSION")
def models(words: tuple[str, ...]) -> None:
    """List the versions of a run (STORAGE/NAME), compare two models, or make an older version current."""
    from boom_ray import lineage
    from boom_ray.progress import console

    match words:
        case ("diff", one, other):
            for line in lineage.diff(storage.absolute(one), storage.absolute(other)):
                click.echo(line)
        case ("rollback", root, version):
            lineage.roll_back(storage.absolute(root), version)
            click.echo(f"current: {version}")
        case (root,):
            console.print(lineage.table(storage.absolute(root)))
        case _:
            raise BoomError("models: expected RUN, or diff MODEL MODEL, or rollback RUN VERSION")


@main.command()
@click.argument("model")
def lineage(model: str) -> None:
    """Draw what a model was made from, down to corpus and base."""
    from boom_ray.lineage import tree
    from boom_ray.progress import console

    console.print(tree(storage.absolute(model)))


@main.command()
@click.argument("run", metavar="RUN")
@click.option("--version", metavar="VERSION", help="By default the current one.")
@click.option("--out", metavar="FILE.html", help="By default report-VERSION.html in the run's directory.")
def report(run: str, version: str | None, out: str | None) -> None:
    """Write a page about a run (STORAGE/NAME): quality, data, training, merge, time and cost, lineage."""
    from boom_ray.page.render import write

    click.echo(f"report: {write(storage.absolute(run), version, out and storage.absolute(out))}")


@main.command()
@click.argument("model")
@click.option("--scratch", metavar="DIR", help="Where it is made again; by default a temporary directory.")
@stop.heeded()
def reproduce(model: str, scratch: str | None) -> None:
    """Train and merge a version again from its record, and compare the digests."""
    import tempfile

    from boom_ray.reproduce import reproduce as make_again

    with tempfile.TemporaryDirectory(prefix="boom-ray-reproduce-") as temporary:
        original, copy = make_again(storage.absolute(model), storage.absolute(scratch or temporary))
    if original.digest != copy.digest:
        different = [name for name in original.files if copy.files.get(name) != original.files[name]]
        raise BoomError(
            f"{model}: digest {original.digest}, made again {copy.digest}; {', '.join(different)} differ"
        )
    click.echo(f"{model}: made again with the same digest, {copy.digest}")


def _weights(context: click.Context, parameter: click.Parameter, value: str) -> str | list[float]:
    if value in ("equal", "size"):
        return value
    try:
        return [float(part) for part in value.split(",")]
    except ValueError:
        raise click.BadParameter(f"got {value!r}; allowed: equal, size, or numbers like 1,2,0.5") from None


@main.command()
@click.argument("models", nargs=-1, metavar="MODEL MODEL [MODEL ...]")
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
@click.option("--scale", default=1.0, help="Factor on the difference: task_arithmetic, ties, dare_linear.")
@click.option("--iterations", default=10, help="Steps of karcher; 1 is the paper's formula.")
@click.option("--density", default=0.5, help="Fraction of a difference that is kept: ties, dare_linear.")
@click.option("--seed", default=0, help="Of dare_linear's choice.")
@click.option("--mergekit-config", metavar="FILE", help="Models and method from a YAML file of mergekit's.")
@click.option("--report", metavar="FILE.json", help="Write how far apart the models lie, and a picture.")
@click.option("--search", is_flag=True, help="Choose method and weights by a development set.")
@click.option("--data", metavar="DIR", help="The development set: a BEIR directory, or a directory of them.")
@click.option("--trials", default=12, type=click.IntRange(min=1), help="How many merges a search tries.")
@click.option("--memory", default=1.0, metavar="GIB", help="Memory of a worker.", show_default=True)
@workers_option
@stop.heeded()
def merge(**given: Any) -> None:
    """Merge models of one architecture into one."""
    from boom_ray import session

    if given["search"] != bool(given["data"]):
        raise BoomError("--search and --data DIR go together: a search chooses by the data")
    if given["mergekit_config"] and given["models"]:
        raise BoomError("give models, or --mergekit-config FILE which names them; not both")
    models, base, spec = _merge_of(given)
    if len(models) < 2:
        raise BoomError(f"merge needs two models or more; got {len(models)}")
    session.connect(dashboard=False)
    _merge(models, base, spec, given)


def _merge_of(given: dict[str, Any]) -> tuple[list[str], str | None, Any]:
    """What is merged and how, from the options or from a file of mergekit's."""
    from dataclasses import replace

    from boom_ray.merge import mergekit
    from boom_ray.merge.actors import MergeSpec
    from boom_ray.merge.methods import Options

    if given["mergekit_config"]:
        models, base, spec = mergekit.read(given["mergekit_config"])
    else:
        models = [storage.absolute(model) for model in given["models"]]
        base = storage.absolute(given["base_model"]) if given["base_model"] else None
        options = Options(given["scale"], given["iterations"], given["density"], given["seed"])
        spec = MergeSpec(given["method"], "deltas" if base else "weights", given["weights"], given["dtype"])
        spec = replace(spec, options=options)
    memory_bytes = int(given["memory"] * (1 << 30))
    return models, base, replace(spec, num_workers=given["num_workers"] or 1, memory_bytes=memory_bytes)


def _merge(models: list[str], base: str | None, spec: Any, given: dict[str, Any]) -> None:
    out = storage.absolute(given["out"])
    if given["search"]:
        from boom_ray.search import search

        record, products = search(models, out, base, spec, storage.absolute(given["data"]), given["trials"])
    else:
        from boom_ray.merge.run import merge_models

        record, merged = merge_models(models, out, base, spec)
        products = merged.products
    if given["report"]:
        from boom_ray.merge import distances

        report = distances.distances([storage.name_of(model) for model in models], spec.space, products)
        place = storage.absolute(given["report"])
        click.echo(f"report: {place}, {distances.write(report, place)}")
    click.echo(f"model: {out}  (digest {record.digest})")


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
@stop.heeded()
def evaluate(models: tuple[str, ...], data: str | None, json_file: str | None, **given: Any) -> None:
    """Measure models: nDCG@10, MRR@10, recall@100 on BEIR directories, or what mteb measures.

    Through mteb go its own benchmarks and tasks, and local tasks as soon as one is not of BEIR.
    """
    from boom_ray import report, session
    from boom_ray.mteb import formats
    from boom_ray.progress import console

    found = formats.find(storage.absolute(data)) if data else []
    if not found and not given["names"]:
        raise BoomError("evaluate: nothing to measure on. Give --data DIR, --mteb NAME, or both")
    uris = [storage.absolute(model) for model in models]
    names = [storage.name_of(uri) for uri in uris]
    labels = names if len(set(names)) == len(names) else list(models)
    subjects = dict(zip(labels, uris, strict=True))
    session.connect()
    problems: list[str] = []
    if data and not given["names"] and all(task.type == "Retrieval" for task in found):
        metric, results = report.MAIN_METRIC, _retrieval(subjects, data, given)
    else:
        metric = "main score"
        results, problems = _through_mteb(subjects, found, given)
    if any(results.values()):
        console.print(report.terminal_table(results, metric))
    if json_file:
        means = {label: report.means(scores) for label, scores in results.items()}
        content = json.dumps({"evaluation": results, "means": means}, indent=1)
        storage.write_bytes(storage.absolute(json_file), content.encode())
        console.print(f"results: {json_file}")
    if problems:
        raise BoomError.of(problems, "not measured; the same command measures only these again:")


def _retrieval(models: dict[str, str], data: str, given: dict[str, Any]) -> Any:
    from boom_ray.evaluate import Protocol, Subject, evaluate

    if given["name"] or given["query_template"]:
        raise BoomError(
            "--name and --query-template go with --mteb NAME: these tasks are not measured by mteb"
        )
    return evaluate([Subject(label, uri) for label, uri in models.items()], Protocol(storage.absolute(data)))


def _through_mteb(models: dict[str, str], found: list[Any], given: dict[str, Any]) -> tuple[Any, list[str]]:
    """The tasks found in files and those named, as mteb measures them."""
    try:
        from boom_ray.mteb import run, tasks
    except ModuleNotFoundError as error:
        if error.name != "mteb":
            raise
        raise BoomError("mteb is not installed. Run: pip install 'boom-ray[mteb]'") from None
    if given["name"] and (len(models) > 1 or given["name"].count("/") != 1):
        raise BoomError("--name ORG/NAME names one model, with its organization; give the models one by one")
    results = storage.absolute(given["results"])
    chosen = {task.name: tasks.local(task) for task in found}
    chosen |= {f"{task.metadata.type}/{task.metadata.name}": task for task in tasks.named(given["names"])}
    protocol = run.Protocol(*(given[key] for key in ("query_template", "num_cpus", "num_gpus", "batch_size")))
    subjects = [run.identified(uri, label, given["name"]) for label, uri in models.items()]
    scores, problems = run.measure(subjects, chosen, protocol, results)
    click.echo(f"results: {results}")
    return {
        label: {name: {"main score": score} for name, score in measured.items()}
        for label, measured in scores.items()
    }, problems


def _columns(context: click.Context, parameter: click.Parameter, value: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in value.split(",") if name.strip())


@main.command()
@click.argument("model")
@click.argument("source", metavar="INPUT")
@click.argument("target", metavar="OUTPUT")
@click.option("--text-column", default="text", show_default=True)
@click.option("--id-column", default="id", show_default=True)
@click.option("--columns", default="", callback=_columns, metavar="A,B", help="Columns to carry along.")
@click.option("--filter", metavar="CONDITION", help="Only rows such as `lang == 'en' and stars > 3`.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Only the first rows.")
@click.option("--empty-text", type=click.Choice(["refuse", "embed"]), default="refuse", show_default=True)
@click.option("--prompt-name", metavar="NAME", help="One of the model's prompts, e.g. query.")
@click.option("--prompt", metavar="TEXT", help="A prompt by its text.")
@click.option("--dimensions", type=click.IntRange(min=1), metavar="D", help="Cut embeddings, and normalize.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "int8", "binary"]),
    default="float32",
    show_default=True,
)
@click.option("--chunk", type=click.IntRange(min=8), metavar="TOKENS", help="Cut long texts into pieces.")
@click.option("--overlap", type=click.IntRange(min=0), default=0, metavar="N", help="Tokens pieces share.")
@click.option("--chunk-output", type=click.Choice(["mean", "each"]), default="mean", show_default=True)
@click.option("--since", multiple=True, metavar="OUTPUT", help="Only rows that this earlier output has not.")
@click.option("--chunk-tokens", default=8192, show_default=True, help="Padded tokens in one forward pass.")
@click.option(
    "--precision",
    type=click.Choice(["float32", "bfloat16"]),
    help="Of the computation; by default bfloat16 on GPUs, on CPUs the faster that gives the same vectors.",
)
@workers_option
@stop.heeded()
def embed(model: str, source: str, target: str, **given: Any) -> None:
    """Embed parquet, jsonl, csv or text files into parquet."""
    from boom_ray import session
    from boom_ray.embed.options import Options
    from boom_ray.embed.run import embed as run_stage

    options = Options(**{**given, "since": tuple(map(storage.absolute, given["since"]))})
    model, source, target = (storage.absolute(uri) for uri in (model, source, target))
    session.connect()
    record = run_stage(model, source, target, options)
    made = record.config
    click.echo(f"embedded: {made['rows']:,} rows, {made['tokens']:,} tokens in {made['seconds']:,.0f} s; "
               f"{made['dimensions']} dimensions, {made['dtype']} ({made['precision']} inside)")  # fmt: skip
    if given["since"]:
        click.echo(f"since: {made['unchanged']:,} rows unchanged, {made['gone']:,} ids gone")
    click.echo(f"output: {target}  (digest {record.digest})")


@main.command()
@click.argument("model_a", metavar="MODEL_A")
@click.argument("model_b", metavar="MODEL_B")
@click.option(
    "--data", required=True, metavar="URI", help="Texts to compare on: parquet, jsonl, csv or text."
)
@click.option("--text-column", default="text", show_default=True)
@click.option("--id-column", default="id", show_default=True)
@click.option(
    "--rows", default=1000, show_default=True, type=click.IntRange(min=20), help="Size of the sample."
)
@stop.heeded()
def drift(model_a: str, model_b: str, data: str, **given: Any) -> None:
    """How far the vectors of one model lie from those of another: must an index be built again?"""
    from boom_ray import session
    from boom_ray.embed.drift import drift as measure

    model_a, model_b, data = (storage.absolute(uri) for uri in (model_a, model_b, data))
    session.connect()
    for line in measure(model_a, model_b, data, **given).lines():
        click.echo(line)


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

    POST /v1/embeddings as OpenAI's clients speak it, POST /embed as text-embeddings-inference's, GET /docs.
    """
    from boom_ray import session
    from boom_ray.serve import app, build

    uris, settings = [storage.absolute(model) for model in models], build.Settings(**given)
    if config_out:
        build.write_config(uris, settings, host, port, config_out)
        click.echo(f"config: {config_out}  (serve deploy {config_out})")
        return
    session.connect(yielding=False)
    app.serve_models(uris, host, port, settings)


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
