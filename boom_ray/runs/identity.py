"""What the name of a run stands for: `run.json`, and `recipe.json` as it was when the run began."""

import json
from typing import Any

from pydantic import ValidationError

from boom_ray import storage
from boom_ray.artifacts.record import Parent
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.recipe import Data, Recipe, identity

FILE, RECIPE = "run.json", "recipe.json"


def claim(recipe: Recipe) -> Parent:
    """Make the name this recipe's, or refuse it if it is another's; returns the base model's identity."""
    base = directory.identify(recipe.base_model.path)
    mine = {
        "base_model": {**identity(recipe.base_model), "digest": base.digest},
        "bags": identity(recipe.bags),
        "train": identity(recipe.train),
        "merge": identity(recipe.merge),
    }
    place = storage.join(recipe.root, FILE)
    if not storage.is_file(place):
        storage.write_bytes(storage.join(recipe.root, RECIPE), recipe.model_dump_json(indent=1).encode())
        storage.write_bytes(place, json.dumps(mine, indent=1).encode())
        return base
    theirs = json.loads(storage.read_bytes(place))
    different = [line for section in mine for line in _differences(theirs, mine, section)]
    if different:
        raise BoomError.of(
            different,
            f"{recipe.root}: holds the run of another recipe. Give this one another name, or restore:",
        )
    return base


def recipe_of(root: str) -> Recipe:
    """The recipe of a run, as it was when the run began.

    Raises:
        BoomError: if there is none, or another version of boom-ray wrote it.
    """
    place = storage.join(root, RECIPE)
    if not storage.is_file(place):
        raise BoomError(f"{root}: no run there. Give <storage>/<name> of one that has begun")
    try:
        return Recipe.model_validate_json(storage.read_bytes(place))
    except ValidationError as error:
        raise BoomError(f"{place}: not a recipe of this version of boom-ray: {error}") from error


def with_data_of_run(recipe: Recipe) -> Recipe:
    """A recipe of a run with the tasks that the run began with, wherever their files lie today.

    Raises:
        BoomError: listing the tasks and the prompts that differ.
    """
    begun = recipe_of(recipe.root).data
    theirs, mine = ({"data": _said(data)} for data in (begun, recipe.data))
    different = list(_differences(theirs, mine, "data"))
    if different:
        raise BoomError.of(
            different,
            f"{recipe.root}: began with other data. New data is given to `boom-ray update`; in the recipe, "
            "restore:",
        )
    return recipe.model_copy(update={"data": begun})


def _said(data: Data) -> dict[str, Any]:
    """What prompts and negatives depend on, by the name of what differs."""
    tasks = {f"tasks {task.name}": identity(task) | {"expected_rows": None} for task in data.tasks}
    return {"instruction": data.instruction, "query_template": data.query_template} | tasks


def _differences(theirs: dict[str, Any], mine: dict[str, Any], section: str) -> list[str]:
    before, now = theirs[section], mine[section]
    return [
        f"{section}.{key}: {before.get(key)} there, {now.get(key)} in the recipe"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
