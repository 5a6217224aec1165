"""The ancestry of an artifact: the models, bags, corpus and base it was made from."""

from dataclasses import dataclass

from rich.tree import Tree

from boom_ray import artifacts, storage
from boom_ray.artifacts import AnyRecord, ModelRecord, Parent, Record


@dataclass(frozen=True)
class Ancestor:
    """An artifact with its parents.

    Attributes:
        path: Relative to the run; empty for an artifact outside of it, such as the base model.
        identity: Name, version and digest.
        record: None for an artifact outside of the run.
    """

    path: str
    identity: Parent
    record: AnyRecord | None
    parents: list["Ancestor"]

    @property
    def models(self) -> list["Ancestor"]:
        """The parents that are models of the run; the others are corpus, bags and base."""
        return [parent for parent in self.parents if isinstance(parent.record, ModelRecord)]


def ancestry(identity: Parent, records: dict[str, AnyRecord]) -> Ancestor:
    """An artifact with its parents, their parents, and so on down to corpus and base.

    Args:
        records: Every artifact of the run, see `artifacts_below`.
    """
    path = next((path for path, record in records.items() if record.as_parent() == identity), "")
    record = records.get(path)
    return Ancestor(
        path, identity, record, [ancestry(parent, records) for parent in (record.parents if record else [])]
    )


def tree(uri: str) -> Tree:
    """The ancestry of a model as a tree for the terminal.

    Raises:
        NotFoundError: if `uri` is not an artifact.
    """
    record = artifacts.read(uri, ModelRecord)
    records = artifacts_below(storage.parent_of(storage.parent_of(uri)))
    return _branch(ancestry(record.as_parent(), records), Tree(_title(record)))


def _branch(ancestor: Ancestor, branch: Tree) -> Tree:
    for parent in ancestor.parents:
        name, version, digest = parent.identity.name, parent.identity.version, parent.identity.digest
        title = _title(parent.record) if parent.record else f"{name} {version} [dim]{digest}[/dim]"
        _branch(parent, branch.add(title))
    return branch


def _title(record: Record) -> str:
    seed = "" if record.seed is None else f", seed {record.seed}"
    made = f"boom-ray {record.code_version}, {record.created}"
    return (
        f"{record.kind} {record.name} {record.version}{_making(record)}{seed} "
        f"[dim]{record.digest}, {made}[/dim]"
    )


def _making(record: Record) -> str:
    """The merge and the rows behind a model, and the bag it was trained on."""
    if not isinstance(record, ModelRecord):
        return ""
    config = record.config
    merge = f", {config.merge}" if config.merge else ""
    rows = f", {config.rows:,} rows" if config.rows else ""
    return f"{merge}{rows} ({config.training.bag.describe()})" if config.training else f"{merge}{rows}"


def artifacts_below(root: str) -> dict[str, AnyRecord]:
    """Every artifact of a run by its path relative to the run."""
    paths = [
        storage.parent_of(name)
        for name in storage.list_files(root)
        if storage.name_of(name) in artifacts.RECORDS
    ]
    return {path: record for path in paths if (record := artifacts.read_record(storage.join(root, path)))}
