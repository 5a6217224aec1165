"""Make a version again from what its run stored, and compare."""

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord
from boom_ray.errors import NotFoundError
from boom_ray.pipeline.run import run
from boom_ray.pipeline.update.make import make
from boom_ray.recipe import Evaluate, Recipe
from boom_ray.runs.identity import recipe_of
from boom_ray.runs.layout import Layout
from boom_ray.runs.updates import ancestors


def reproduce(uri: str, scratch: str) -> tuple[ModelRecord, ModelRecord]:
    """Train and merge a version again, elsewhere, from its corpus, bags, seeds and recipe.

    The source files of the corpus are not needed: the run stores their rows.

    Args:
        uri: The version, `<storage>/<name>/models/<version>`.
        scratch: URI of an empty directory for the second run.

    Returns:
        The records of the original and of the copy; equal digests mean that every byte of content is equal.

    Raises:
        NotFoundError: if the run no longer holds what is needed.
        BoomError: if a stage fails.
    """
    root, version = storage.parent_of(storage.parent_of(uri)), storage.name_of(uri)
    original = artifacts.find(uri, ModelRecord)
    if original is None:
        raise NotFoundError(f"{uri}: not a version of a run, so it cannot be made again")
    recipe = _recipe(root, scratch)
    updates = ancestors(root, version)
    _copy_inputs(Layout(root), Layout(recipe.root), original, [child for child, _ in updates])
    if updates:
        request = updates[-1][1].model_copy(update={"requirements": {}})
        return original, make(recipe, request, version, sets={}).record
    return original, run(recipe).record


def _recipe(root: str, scratch: str) -> Recipe:
    """The recipe of a run elsewhere, measured on nothing but what its scale is chosen on."""
    recipe = recipe_of(root).model_copy(update={"storage": scratch})
    evaluate = Evaluate()
    if recipe.merge.scale == "auto":
        development = Layout(recipe.root).development
        evaluate = recipe.evaluate.model_copy(update={"data": None, "development": development})
    return recipe.model_copy(update={"evaluate": evaluate})


def _copy_inputs(source: Layout, target: Layout, original: ModelRecord, updates: list[str]) -> None:
    """Copy everything a version is made from, but not what is to be made again."""
    inputs = [source.corpus, source.bags, source.identity, source.recipe, source.cores, source.development]
    for child in updates:
        inside = source.update(child)
        inputs += [source.request(child), inside.corpus, inside.bags, inside.identity]
    if original.config.update:
        inputs.append(source.model(original.config.update.parent))
        inputs += [storage.join(source.root, leaf) for leaf in original.config.update.leaves[:-1]]
    for uri in inputs:
        _copy(uri, storage.join(target.root, source.relative(uri)))


def _copy(source: str, target: str) -> None:
    if storage.is_file(source):
        storage.write_bytes(target, storage.read_bytes(source))
    elif storage.exists(source):
        storage.copy_tree(source, target)
