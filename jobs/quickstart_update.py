"""What updates are worth, on the quickstart's corpus: `bash jobs/quickstart.sh --update`.

One package comes later than the others, in three weeks. It is brought in by one update of all three weeks
(merged with equal weights, by mass, or flat) and by a chain of three weekly updates, and all of that is
compared with training the bags again on everything. What was made before is not made again.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from rich.table import Table

from boom_ray import artifacts, storage
from boom_ray.data import bags
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.model import directory
from boom_ray.pipeline import run as pipeline
from boom_ray.pipeline.update.request import Request, read_tasks
from boom_ray.pipeline.update.run import update
from boom_ray.recipe import Evaluate, Recipe
from boom_ray.recipe_file import load
from boom_ray.runs.scores import main_score, mean_scores
from boom_ray.runtime.console import console
from boom_ray.train.bagging import model_uri

HOME = os.path.join(os.environ["BOOM_RAY_HOME"], "update")
NUM_WEEKS = 3


@dataclass(frozen=True)
class Line:
    """One model of the table, and the models that were trained for it."""

    label: str
    model: str
    trained: list[str]


def lines_of(recipe: Recipe) -> Iterator[Line]:
    """v0001, what updates make of it, and what training everything again gives, each made when it is due."""
    weeks = [read_tasks(f"{HOME}/later/week-{week}.yaml") for week in range(1, NUM_WEEKS + 1)]
    new = [task for week in weeks for task in week]
    first = pipeline.run(unmeasured(recipe))
    yield Line("v0001", first, bags_of(recipe))
    asked = Request("v0001", new, new_evaluation=f"{HOME}/eval/later")
    child = update(recipe, asked)
    yield Line("the update's own model", trained_for(recipe, child), [trained_for(recipe, child)])
    yield Line("update", child, [trained_for(recipe, child)])
    data = recipe.data.model_copy(update={"tasks": [*recipe.data.tasks, *new]})
    full = recipe.model_copy(update={"name": f"{recipe.name}-full", "data": data})
    yield Line("all bags again", pipeline.run(unmeasured(full)), bags_of(full))
    child = update(recipe, replace(asked, weights="mass"))
    yield Line("update --weights mass", child, [trained_for(recipe, child)])
    child = update(recipe, replace(asked, flat=True))
    yield Line("update --flat", child, [trained_for(recipe, child)])
    trained, parent = [], first
    for number, week in enumerate(weeks, 1):
        parent = update(recipe, replace(asked, parent=storage.name_of(parent), tasks=week))
        trained.append(trained_for(recipe, parent))
        yield Line(f"chain, week {number}", parent, list(trained))


def unmeasured(recipe: Recipe) -> Recipe:
    """The same run without measurements: the table's are enough."""
    return recipe.model_copy(update={"evaluate": Evaluate()})


def bags_of(recipe: Recipe) -> list[str]:
    """The models of a run's bags."""
    return [model_uri(recipe, bags.name_of(index)) for index in range(len(recipe.bags.ratios))]


def trained_for(recipe: Recipe, child: str) -> str:
    """The model an update trained."""
    return storage.join(recipe.root, "updates", storage.name_of(child), "models", "bag-1")


def table(recipe: Recipe, lines: list[Line]) -> Table:
    """Rows, steps and tokens trained for each model, and its mean on old and new tasks."""
    result = Table("model", "rows", "steps", "tokens", "old mean", "new mean", title="nDCG@10", box=None)
    subjects = [Subject(line.label, line.model) for line in lines]
    prompt, cache = directory.prompts_of(recipe.data)["query"], storage.join(recipe.root, "evaluation")
    protocol = EvaluationProtocol(query_prompt=prompt, max_length=recipe.evaluate.max_length)
    old, new = (
        scores_of(measure(subjects, find_tasks(f"{HOME}/eval/{group}"), protocol, cache))
        for group in ("in_domain", "later")
    )
    for line in lines:
        records = [record for uri in line.trained if (record := artifacts.read_record(uri))]
        spent = [sum(record.config["rows"] for record in records)]
        spent += [sum(record.metrics[key] for record in records) for key in ("step", "tokens")]
        means = [main_score(mean_scores(scores[line.label])["all"]) for scores in (old, new)]
        cells = [*(f"{count:,}" for count in spent), *(f"{mean:.4f}" for mean in means)]
        result.add_row(line.label, *cells)
    return result


def main() -> None:
    """Make everything, and print one table."""
    recipe = load(os.path.join(os.path.dirname(__file__), "recipes", "quickstart-update.yaml"))
    console.print(table(recipe, list(lines_of(recipe))))


if __name__ == "__main__":
    main()
