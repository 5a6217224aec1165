"""Inspect runs and models: status, versions, lineage, reports, and checks of what is stored."""

import tempfile
from typing import TYPE_CHECKING

from boom_ray import artifacts, storage
from boom_ray.api import arguments
from boom_ray.api.arguments import ModelLike, PathLike, RunLike
from boom_ray.api.results import Lineage, ModelsTable, ModelVersion, Reproduction
from boom_ray.artifacts import AnyRecord
from boom_ray.errors import ConflictError
from boom_ray.runs import versions
from boom_ray.runs.layout import Layout
from boom_ray.runtime.progress import ProgressCallback, reported_to

if TYPE_CHECKING:
    from boom_ray.runs.status import RunStatus


def status(run: RunLike) -> "RunStatus":
    """Read the status of a run from its storage alone: parts done, in progress, waiting or failed.

    Args:
        run: `<storage>/<name>`.

    Raises:
        NotFoundError: if there is no run.
        StorageError: if its storage cannot be read.

    Example:
        >>> boom.status("runs/quickstart").state
        'done'
    """
    from boom_ray.runs.status import read

    return read(arguments.run_uri(run))


def models(uri: RunLike) -> ModelsTable:
    """List the versions of a run (`<storage>/<name>`), or of all runs of a storage.

    Raises:
        NotFoundError: if there is no run.

    Example:
        >>> boom.models("runs").to_frame()
    """
    roots = versions.runs(arguments.run_uri(uri))
    found = []
    for root in roots:
        records = versions.published(root)
        current = versions.current(root) if records else None
        found += [
            ModelVersion(storage.name_of(root), name, Layout(root).model(name), record, name == current)
            for name, record in records.items()
        ]
    return ModelsTable(roots, found)


def diff(model_a: ModelLike, model_b: ModelLike) -> list[str]:
    """Compare two models: settings, parents, tensors, and scores on each task.

    Returns:
        One line per difference, `name: value of model_a -> value of model_b`.

    Raises:
        NotFoundError: if one of them has no record.

    Example:
        >>> boom.diff("runs/quickstart/models/v0001", "runs/quickstart/models/v0002")
    """
    return versions.diff(arguments.model_uri(model_a), arguments.model_uri(model_b))


def rollback(run: RunLike, version: str) -> str:
    """Make an older version of a run the current one, until a new one is published.

    Returns:
        URI of the version.

    Raises:
        NotFoundError: if there is no such version.

    Example:
        >>> boom.rollback("runs/quickstart", "v0001")
    """
    root = arguments.run_uri(run)
    versions.roll_back(root, version)
    return Layout(root).model(version)


def lineage(model: ModelLike) -> Lineage:
    """Read the ancestry of a model, down to the corpus and the base model.

    Raises:
        NotFoundError: if there is no model.

    Example:
        >>> [parent.identity.version for parent in boom.lineage("runs/quickstart").ancestor.parents]
        ['bag-1', 'bag-2', 'bag-3']
    """
    return Lineage.of(arguments.model_uri(model))


def report(run: RunLike, version: str | None = None, out: PathLike | None = None) -> str:
    """Write an HTML page about a run: quality, data, training, merge, time and cost, lineage.

    Args:
        version: By default the current one.
        out: The file; by default `report-VERSION.html` in the run's directory.

    Returns:
        URI of the file.

    Raises:
        NotFoundError: if there is no such run or version.

    Example:
        >>> boom.report("runs/quickstart")
    """
    from boom_ray.report.render import write

    return write(arguments.run_uri(run), version, arguments.optional_path(out))


def reproduce(
    model: ModelLike, scratch: PathLike | None = None, *, progress: ProgressCallback | None = None
) -> Reproduction:
    """Train and merge a version again from its record, and compare the digests.

    Args:
        scratch: An empty directory for the second run; by default a temporary one.
        progress: Receives every `ProgressEvent`; by default progress is printed.

    Returns:
        The records of the original and of the copy.

    Raises:
        NotFoundError: if the run no longer holds what is needed.
        ConflictError: if the digests differ, with the files that do.

    Example:
        >>> boom.reproduce("runs/quickstart").copy.digest
    """
    from boom_ray.pipeline.reproduce import reproduce as make_again

    uri = arguments.model_uri(model)
    with tempfile.TemporaryDirectory(prefix="boom-ray-reproduce-") as temporary, reported_to(progress):
        original, copy = make_again(uri, arguments.path(temporary if scratch is None else scratch))
    if original.digest != copy.digest:
        different = [name for name in original.files if copy.files.get(name) != original.files[name]]
        raise ConflictError(
            f"{uri}: digest {original.digest}, reproduced with {copy.digest}; {', '.join(different)} differ. "
            "Use the libraries and processors of the original; a run on GPUs is only repeated exactly if it "
            "was trained with train.execution.deterministic"
        )
    return Reproduction(original, copy)


def verify(directory: ModelLike) -> AnyRecord:
    """Check an artifact against its record: every file, every hash.

    Args:
        directory: A model, a run (its current version), or a directory of corpus, bags or vectors.

    Returns:
        The record.

    Raises:
        NotFoundError: if there is no record.
        StorageError: naming every file that differs.

    Example:
        >>> boom.verify("runs/quickstart/models/v0001").digest
    """
    return artifacts.verify(arguments.model_uri(directory))
