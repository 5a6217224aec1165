"""Make a version again from what its run left behind, and compare."""

from boom_ray import artifact, pipeline, storage, update
from boom_ray.artifact import Record
from boom_ray.errors import BoomError
from boom_ray.recipe import Evaluate, Recipe

SHARED = ("corpus", "bags", "run.json", "recipe.json", "core")


def reproduce(uri: str, scratch: str) -> tuple[Record, Record]:
    """Train and merge a version once more, elsewhere, from its corpus, bags, seeds and recipe.

    Args:
        uri: The version, `<storage>/<name>/models/<version>`.
        scratch: URI of an empty directory, which will hold the second run.

    Returns:
        The records of the original and of the copy; equal digests say that every byte of content is equal.

    Raises:
        BoomError: if the run no longer holds what is needed, or the stages fail.
    """
    root, version = storage.parent_of(storage.parent_of(uri)), storage.name_of(uri)
    original = artifact.read_record(uri)
    place = storage.join(root, "recipe.json")
    if original is None or not storage.is_file(place):
        raise BoomError(f"{uri}: not a version of a run, or its recipe.json is gone; it cannot be made again")
    recipe = Recipe.model_validate_json(storage.read_bytes(place)).model_copy(
        update={"storage": scratch, "evaluate": Evaluate()}
    )
    for name in SHARED:
        _copy(storage.join(root, name), storage.join(recipe.root, name))
    request = update.read_request(root, version)
    if request is None:
        again = pipeline.run(recipe)
    else:
        begun = storage.join("updates", version)
        for name in ("update.json", "corpus", "bags", "run.json"):
            _copy(storage.join(root, begun, name), storage.join(recipe.root, begun, name))
        for name in ["models/" + request.parent, *original.config["leaves"][:-1]]:
            _copy(storage.join(root, name), storage.join(recipe.root, name))
        again = update.update(recipe, request)
    copy = artifact.read_record(again)
    assert copy is not None
    return original, copy


def _copy(source: str, target: str) -> None:
    if storage.is_file(source):
        storage.write_bytes(target, storage.read_bytes(source))
    elif storage.exists(source):
        storage.copy_tree(source, target)
