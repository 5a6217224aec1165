"""Updates compared with full retraining on the quickstart's corpus: `bash jobs/quickstart.sh --update`.

The rows of one package arrive later, in three weekly parts. They are added by one update with all three parts
(merged with equal weights, by mass, or flat) and by a chain of three weekly updates. The results are compared
with bags retrained on all rows. Models that already exist are not trained again.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass

from rich.table import Table

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord
from boom_ray.data import bags
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.pipeline.run import run
from boom_ray.pipeline.update.make import update
from boom_ray.recipe import Evaluate, Recipe
from boom_ray.runs.layout import Layout
from boom_ray.runs.scores import main_score, mean_scores
from boom_ray.runs.updates import UpdateRequest, read_tasks
from boom_ray.runtime.console import console

HOME = os.path.join(os.environ["BOOM_RAY_HOME"], "update")
NUM_WEEKS = 3


@dataclass(frozen=True)
class Line:
    """One row of the table: a model, and the models that were trained for it."""

    label: str
    model: str
    trained: list[str]


def lines_of(recipe: Recipe) -> Iterator[Line]:
    """v0001, the results of updates, and of full retraining; each is made when it is yielded."""
    weeks = [read_tasks(f"{HOME}/later/week-{week}.yaml") for week in range(1, NUM_WEEKS + 1)]
    new = [task for week in weeks for task in week]
    first = run(unmeasured(recipe)).model
    yield Line("v0001", first, bags_of(recipe))
    request = UpdateRequest(parent="v0001", tasks=new, new_evaluation=f"{HOME}/eval/later")
    child = update(recipe, request).model
    yield Line("the update's own model", trained_for(recipe, child), [trained_for(recipe, child)])
    yield Line("update", child, [trained_for(recipe, child)])
    data = recipe.data.model_copy(update={"tasks": [*recipe.data.tasks, *new]})
    full = recipe.model_copy(update={"name": f"{recipe.name}-full", "data": data})
    yield Line("all bags again", run(unmeasured(full)).model, bags_of(full))
    child = update(recipe, request.model_copy(update={"weights": "mass"})).model
    yield Line("update --weights mass", child, [trained_for(recipe, child)])
    child = update(recipe, request.model_copy(update={"flat": True})).model
    yield Line("update --flat", child, [trained_for(recipe, child)])
    trained, parent = [], first
    for number, week in enumerate(weeks, 1):
        weekly = request.model_copy(update={"parent": storage.name_of(parent), "tasks": week})
        parent = update(recipe, weekly).model
        trained.append(trained_for(recipe, parent))
        yield Line(f"chain, week {number}", parent, list(trained))


def unmeasured(recipe: Recipe) -> Recipe:
    """The same run without its evaluation, which the table replaces."""
    return recipe.model_copy(update={"evaluate": Evaluate()})


def bags_of(recipe: Recipe) -> list[str]:
    """URIs of the models of a run's bags."""
    return [Layout(recipe.root).model(bags.name_of(index)) for index in range(len(recipe.bags.ratios))]


def trained_for(recipe: Recipe, child: str) -> str:
    """URI of the model that an update trained."""
    return Layout(recipe.root).update(storage.name_of(child)).model(bags.name_of(0))


def table(recipe: Recipe, lines: list[Line]) -> Table:
    """Rows, steps and tokens of training for each model, and its mean scores on old and new tasks."""
    result = Table("model", "rows", "steps", "tokens", "old mean", "new mean", title="nDCG@10", box=None)
    subjects = [Subject(line.label, line.model) for line in lines]
    protocol, cache = EvaluationProtocol.of(recipe), Layout(recipe.root).measurements
    old, new = (
        scores_of(measure(subjects, find_tasks(f"{HOME}/eval/{group}"), protocol, cache))
        for group in ("in_domain", "later")
    )
    for line in lines:
        records = [artifacts.read(uri, ModelRecord) for uri in line.trained]
        trained = [record.metrics.training for record in records if record.metrics.training]
        spent = [sum(record.config.rows or 0 for record in records)]
        spent += [sum(one.step for one in trained), sum(one.tokens for one in trained)]
        means = [main_score(mean_scores(scores[line.label])["all"]) for scores in (old, new)]
        cells = [*(f"{count:,}" for count in spent), *(f"{mean:.4f}" for mean in means)]
        result.add_row(line.label, *cells)
    return result


def main() -> None:
    """Make all models, and print the table."""
    recipe = Recipe.load(os.path.join(os.path.dirname(__file__), "recipes", "quickstart-update.yaml"))
    console.print(table(recipe, list(lines_of(recipe))))


if __name__ == "__main__":
    main()
