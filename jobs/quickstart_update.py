"""What updates are worth, on the quickstart's corpus: `bash jobs/quickstart.sh --update`.

One package comes later than the others, in three weeks. It is brought in by one update of all three weeks
(merged with equal weights, by mass, or flat) and by a chain of three weekly updates, and all of that is
compared with training the bags again on everything. What was made before is not made again.
"""

import os
from dataclasses import dataclass, replace

from rich.table import Table

from boom_ray import artifact, evaluate, pipeline, report, storage, update
from boom_ray.evaluate import Protocol, Subject
from boom_ray.model import directory
from boom_ray.progress import console
from boom_ray.recipe import Recipe, load
from boom_ray.update import Request

HOME = os.path.join(os.environ["BOOM_RAY_HOME"], "update")
NUM_WEEKS = 3


@dataclass(frozen=True)
class Line:
    """One model of the table, and the models that were trained for it."""

    label: str
    model: str
    trained: list[str]


def updates(recipe: Recipe) -> list[Line]:
    """v0001 and everything made from it by updates."""
    weeks = [update.read_tasks(f"{HOME}/later/week-{week}.yaml") for week in range(1, NUM_WEEKS + 1)]
    first = pipeline.run(recipe)
    lines = [Line("v0001", first, [f"{recipe.root}/models/bag-{bag}" for bag in (1, 2, 3)])]
    request = Request("v0001", [task for week in weeks for task in week], new_evaluation=f"{HOME}/eval/later")
    ways = {
        "update": request,
        "update --weights mass": replace(request, weights="mass"),
        "update --flat": replace(request, flat=True),
    }
    for label, asked in ways.items():
        child = update.update(recipe, asked)
        lines.append(Line(label, child, [trained_for(recipe, child)]))
    lines.insert(1, Line("the update's own model", lines[1].trained[0], lines[1].trained))
    trained, parent = [], first
    for number, week in enumerate(weeks, 1):
        parent = update.update(recipe, replace(request, parent=storage.name_of(parent), tasks=week))
        trained.append(trained_for(recipe, parent))
        lines.append(Line(f"chain, week {number}", parent, list(trained)))
    return lines


def trained_for(recipe: Recipe, child: str) -> str:
    """The model an update trained."""
    return f"{recipe.root}/updates/{storage.name_of(child)}/models/bag-1"


def everything_again(recipe: Recipe) -> Line:
    """The bags trained on all data, as if there were no updates."""
    later = [update.read_tasks(f"{HOME}/later/week-{week}.yaml") for week in range(1, NUM_WEEKS + 1)]
    tasks = [*recipe.data.tasks, *(task for week in later for task in week)]
    full = recipe.model_copy(
        update={"name": "update-full", "data": recipe.data.model_copy(update={"tasks": tasks})}
    )
    model = pipeline.run(full)
    return Line("all bags again", model, [f"{full.root}/models/bag-{bag}" for bag in (1, 2, 3)])


def table(recipe: Recipe, lines: list[Line]) -> Table:
    """Rows and steps trained for each model, and its mean on old and new tasks."""
    result = Table("model", "rows", "steps", "old mean", "new mean", title="nDCG@10", box=None)
    subjects = [Subject(line.label, line.model) for line in lines]
    prompt, cache = directory.prompts_of(recipe.data)["query"], storage.join(recipe.root, "evaluation")
    old, new = (
        evaluate.evaluate(
            subjects, Protocol(f"{HOME}/eval/{group}", prompt, recipe.evaluate.max_length), cache
        )
        for group in ("in_domain", "later")
    )
    for line in lines:
        records = [record for uri in line.trained if (record := artifact.read_record(uri))]
        rows = sum(record.config["rows"] for record in records)
        steps = sum(record.metrics["step"] for record in records)
        means = [report.means(scores[line.label])["all"][report.MAIN_METRIC] for scores in (old, new)]
        result.add_row(line.label, f"{rows:,}", f"{steps:,}", *(f"{mean:.4f}" for mean in means))
    return result


def main() -> None:
    """Make everything, and print one table."""
    recipe = load(os.path.join(os.path.dirname(__file__), "recipes", "quickstart-update.yaml"))
    lines = [*updates(recipe), everything_again(recipe)]
    console.print(table(recipe, lines))


if __name__ == "__main__":
    main()
