"""Make a version again from what its run left behind, and compare."""

from dataclasses import replace

from boom_ray import artifacts, storage
from boom_ray.artifacts.record import Record
from boom_ray.errors import BoomError
from boom_ray.pipeline import run as pipeline
from boom_ray.pipeline.update import run as update_run
from boom_ray.pipeline.update.request import ancestors
from boom_ray.recipe import Evaluate
from boom_ray.runs.identity import recipe_of

SHARED = ("corpus", "bags", "run.json", "recipe.json", "core")


def reproduce(uri: str, scratch: str) -> tuple[Record, Record]:
    """Train and merge a version once more, elsewhere, from its corpus, bags, seeds and recipe.

    The files that the corpus was made from are not needed: the run has kept their rows.

    Args:
        uri: The version, `<storage>/<name>/models/<version>`.
        scratch: URI of an empty directory, which will hold the second run.

    Returns:
        The records of the original and of the copy; equal digests say that every byte of content is equal.

    Raises:
        BoomError: if the run no longer holds what is needed, or the stages fail.
    """
    root, version = storage.parent_of(storage.parent_of(uri)), storage.name_of(uri)
    original = artifacts.read_record(uri)
    if original is None:
        raise BoomError(f"{uri}: no such version of a run; it cannot be made again")
    recipe = recipe_of(root).model_copy(update={"storage": scratch, "evaluate": Evaluate()})
    kept = list(SHARED)
    led_here = ancestors(root, version)
    for child, _ in led_here:
        kept += [f"updates/{child}/{name}" for name in ("update.json", "corpus", "bags", "run.json")]
    if led_here:
        kept += [f"models/{original.config['parent']}", *original.config["leaves"][:-1]]
    for name in kept:
        _copy(storage.join(root, name), storage.join(recipe.root, name))
    if led_here:
        request = replace(led_here[-1][1], requirements=())
        again = update_run.make(recipe, request, version, tasks={})
    else:
        again = pipeline.run(recipe)
    copy = artifacts.read_record(again)
    assert copy is not None
    return original, copy


def _copy(source: str, target: str) -> None:
    if storage.is_file(source):
        storage.write_bytes(target, storage.read_bytes(source))
    elif storage.exists(source):
        storage.copy_tree(source, target)
