"""The ancestry of an artifact: the models, bags, corpus and base it was made from."""

from dataclasses import dataclass

from rich.tree import Tree

from boom_ray import artifacts, storage
from boom_ray.artifacts.record import Parent, Record
from boom_ray.errors import BoomError


@dataclass(frozen=True)
class Ancestor:
    """An artifact with what it was made from.

    Attributes:
        path: Below the run; empty for what lies elsewhere, as the base model does.
        identity: Name, version and digest.
        record: None for what lies elsewhere.
    """

    path: str
    identity: Parent
    record: Record | None
    parents: list["Ancestor"]

    @property
    def models(self) -> list["Ancestor"]:
        """Of what it was made from, the run's models; the rest are corpus, bags and base."""
        return [parent for parent in self.parents if parent.record and parent.record.kind == "model"]


def ancestry(identity: Parent, records: dict[str, Record]) -> Ancestor:
    """What an artifact was made from, and so on down to corpus and base.

    Args:
        records: Every artifact of the run, see `artifacts_below`.
    """
    path = next((path for path, record in records.items() if record.as_parent() == identity), "")
    record = records.get(path)
    return Ancestor(
        path, identity, record, [ancestry(parent, records) for parent in (record.parents if record else [])]
    )


def tree(uri: str) -> Tree:
    """A model, what it was made from, and so on down to corpus and base, as a drawing.

    Raises:
        BoomError: if `uri` is no artifact.
    """
    record = artifacts.read_record(uri)
    if record is None:
        raise BoomError(f"{uri}: not an artifact: it has no {artifacts.RECORD}")
    known = artifacts_below(storage.parent_of(storage.parent_of(uri)))
    return _branch(ancestry(record.as_parent(), known), Tree(_title(record)))


def _branch(ancestor: Ancestor, branch: Tree) -> Tree:
    for parent in ancestor.parents:
        name, version, digest = parent.identity.name, parent.identity.version, parent.identity.digest
        title = _title(parent.record) if parent.record else f"{name} {version} [dim]{digest}[/dim]"
        _branch(parent, branch.add(title))
    return branch


def _title(record: Record) -> str:
    seed = "" if record.seed is None else f", seed {record.seed}"
    rows = f", {record.config['rows']:,} rows" if isinstance(record.config.get("rows"), int) else ""
    made = f"boom-ray {record.code_version}, {record.created}"
    return f"{record.kind} {record.name} {record.version}{rows}{seed} [dim]{record.digest}, {made}[/dim]"


def artifacts_below(root: str) -> dict[str, Record]:
    """Every artifact of a run, by its path below the run's."""
    end = "/" + artifacts.RECORD
    paths = [name.removesuffix(end) for name in storage.list_files(root) if name.endswith(end)]
    return {path: record for path in paths if (record := artifacts.read_record(storage.join(root, path)))}
