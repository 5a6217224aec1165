"""What an update costs beside training all bags again on everything."""

import json
from collections import Counter
from dataclasses import dataclass

from boom_ray import artifacts, storage
from boom_ray.data import bags, corpus
from boom_ray.data.batches import num_batches, num_steps
from boom_ray.pipeline.update.core import history
from boom_ray.recipe import Recipe


@dataclass(frozen=True)
class Cost:
    """Rows, optimizer steps, and tokens of distinct texts in them: of the update's model, and of all bags."""

    rows: int
    steps: int
    tokens: int
    all_rows: int
    all_steps: int
    all_tokens: int

    def __str__(self) -> str:
        rows, tokens = self.rows / self.all_rows, self.tokens / self.all_tokens
        return (
            f"{self.rows:,} rows, {self.steps:,} steps, {self.tokens:,} tokens; all bags again on all data: "
            f"{self.all_rows:,} rows, {self.all_steps:,} steps, about {self.all_tokens:,} tokens; "
            f"that is {rows:.0%} of the rows, {tokens:.0%} of the tokens"
        )


def cost(recipe: Recipe, version: str, trained: str) -> Cost:
    """What was spent on a version's update, and what all bags of the recipe would take on all data behind it.

    A task's steps are taken to have as many tokens there as those that the update has made of it.

    Args:
        trained: URI of the update's own model.
    """
    record = artifacts.read_record(trained)
    assert record is not None
    sizes = {task.name: len(corpus.load_task(uri, task.name)) for uri, task in history(recipe, version)}
    again = bags.counts(sizes, recipe.bags)
    tokens = _tokens_of_steps(trained)
    return Cost(
        rows=record.config["rows"],
        steps=record.metrics["step"],
        tokens=record.metrics["tokens"],
        all_rows=sum(sum(bag.values()) for bag in again),
        all_steps=sum(num_steps(bag.values(), recipe.train) for bag in again),
        all_tokens=round(sum(_expected_tokens(bag, recipe, tokens) for bag in again)),
    )


def _tokens_of_steps(trained: str) -> dict[str, float]:
    """Mean tokens of a step of each task that a model was trained on."""
    lines = storage.read_bytes(storage.join(trained, "metrics.jsonl")).splitlines()
    tokens: Counter[str] = Counter()
    steps: Counter[str] = Counter()
    for step in map(json.loads, lines):
        tokens[step["task"]] += step["tokens"]
        steps[step["task"]] += 1
    return {task: tokens[task] / steps[task] for task in steps}


def _expected_tokens(bag: dict[str, int], recipe: Recipe, tokens: dict[str, float]) -> float:
    """Tokens of all steps of a bag; those of a task that no step was made of are as many as the mean."""
    batches = {task: num_batches([rows], recipe.train.batch_size) for task, rows in bag.items()}
    mean = sum(tokens.values()) / len(tokens)
    epoch = sum(count * tokens.get(task, mean) for task, count in batches.items())
    return epoch / sum(batches.values()) * num_steps(bag.values(), recipe.train)
