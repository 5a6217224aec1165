"""The cost of an update compared with training all bags again on everything."""

import json
from collections import Counter

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord
from boom_ray.artifacts.contents import UpdateCost
from boom_ray.artifacts.record import METRICS_LOG
from boom_ray.data import bags, corpus
from boom_ray.data.batches import num_batches, num_steps
from boom_ray.pipeline.update.core import history
from boom_ray.recipe import Recipe, Train


def cost(recipe: Recipe, version: str, trained: str) -> UpdateCost:
    """The cost of a version's update, and of all bags of the recipe on all data behind the version.

    The tokens of a step of a task are assumed to be the mean of the update's own steps of that task.

    Args:
        trained: URI of the update's own model.
    """
    record = artifacts.read(trained, ModelRecord)
    assert record.metrics.training is not None and record.config.rows is not None
    sizes = {task.name: len(corpus.load_task(uri, task.name)) for uri, task in history(recipe, version)}
    again = [(bag, recipe.train_of(index)) for index, bag in enumerate(bags.counts(sizes, recipe.bags))]
    tokens = _tokens_of_steps(trained)
    return UpdateCost(
        rows=record.config.rows,
        steps=record.metrics.training.step,
        tokens=record.metrics.training.tokens,
        all_rows=sum(sum(bag.values()) for bag, _ in again),
        all_steps=sum(num_steps(bag.values(), train) for bag, train in again),
        all_tokens=round(sum(_expected_tokens(bag, train, tokens) for bag, train in again)),
    )


def describe(cost: UpdateCost) -> str:
    """The cost in one line."""
    rows, tokens = cost.rows / cost.all_rows, cost.tokens / cost.all_tokens
    return (
        f"{cost.rows:,} rows, {cost.steps:,} steps, {cost.tokens:,} tokens; all bags again on all data: "
        f"{cost.all_rows:,} rows, {cost.all_steps:,} steps, about {cost.all_tokens:,} tokens; "
        f"that is {rows:.0%} of the rows, {tokens:.0%} of the tokens"
    )


def _tokens_of_steps(trained: str) -> dict[str, float]:
    """Mean tokens of a step, by task the model was trained on."""
    lines = storage.read_bytes(storage.join(trained, METRICS_LOG)).splitlines()
    tokens: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for step in map(json.loads, lines):
        tokens[step["task"]] += step["tokens"]
        steps[step["task"]] += 1
    return {task: tokens[task] / steps[task] for task in steps}


def _expected_tokens(bag: dict[str, int], train: Train, tokens: dict[str, float]) -> float:
    """Tokens of all steps of a bag; a task without a step in `tokens` is assumed to have the mean."""
    batches = {task: num_batches([rows], train.batch_size) for task, rows in bag.items()}
    mean = sum(tokens.values()) / len(tokens)
    epoch = sum(count * tokens.get(task, mean) for task, count in batches.items())
    return epoch / sum(batches.values()) * num_steps(bag.values(), train)
