"""Development and test queries apart: nothing is chosen on the queries that are reported."""

from boom_ray.errors import InputError
from boom_ray.evaluation import beir, local_tasks
from boom_ray.evaluation.local_tasks import LabelledText, LocalTask, RankedQuery, ScoredPair


def check_disjoint(development: str, reported: str) -> None:
    """Check that two directories of local tasks share no query.

    Args:
        development: URI of the tasks that something is chosen on.
        reported: URI of the tasks that the result is measured on.

    Raises:
        NotFoundError: if one has no tasks.
        InputError: if one contains the other, or they share queries.
    """
    first, second = (f"{uri.rstrip('/')}/" for uri in (development, reported))
    if first.startswith(second) or second.startswith(first):
        raise InputError(
            f"development tasks: got {development}, and {reported} for what is reported. A choice would be "
            "measured on the queries it was made on; give directories of which none contains the other"
        )
    shared = queries_below(development) & queries_below(reported)
    if shared:
        raise InputError(
            f"{development} and {reported} share {len(shared)} queries, such as {min(shared)[:80]!r}. A "
            "choice would be measured on the queries it was made on; remove them from one"
        )


def queries_below(data: str) -> set[str]:
    """The text of every query of the tasks at or below a directory: what is searched for or labelled."""
    return {text for task in local_tasks.find(data) for text in _queries(task)}


def _queries(task: LocalTask) -> set[str]:
    if task.type == "Retrieval":
        return set(beir.read_queries(task.uri).values())
    if task.type == "Reranking":
        return {row.query for row in local_tasks.read(task.uri, "test", RankedQuery)}
    if task.type == "STS":
        rows = local_tasks.read(task.uri, "test", ScoredPair)
        return {f"{row.sentence1}\n{row.sentence2}" for row in rows}
    return {row.text for row in local_tasks.read(task.uri, "test", LabelledText)}
