"""Relevance judgements: BEIR's tab-separated files, and those of trec_eval."""

from boom_ray import storage
from boom_ray.errors import InputError, NotFoundError

Grades = dict[tuple[str, str], int]  # (query id, document id) -> grade
MAX_GRADE = 2**31 - 1  # of trec_eval's format

COLUMNS = {  # names in headers, without case, spaces, dashes and underscores
    "query": ("query", "queryid", "qid", "topic", "topicid", "question", "questionid"),
    "document": (
        *("corpus", "corpusid", "doc", "docid", "did", "docno", "document", "documentid"),
        *("passage", "passageid", "pid"),
    ),
    "grade": ("score", "relevance", "rel", "label", "grade", "judgement", "judgment", "qrel"),
    "iteration": ("iteration", "iter", "q0", "0", "unused"),
}
ORDERS = {3: ["query", "document", "grade"], 4: ["query", "iteration", "document", "grade"]}  # without header


def read_qrels(folder: str) -> Grades:
    """The grade of each judged pair, from `test.tsv` if it exists, otherwise from all `.tsv` files.

    A line has a query id, a document id and a grade, which is an integer such as `1` or `1.0`. Tabs separate
    them, or spaces in a line without tabs. Files of trec_eval have an unused second column. The first line
    can be a header; its names give the order of the columns.

    Raises:
        NotFoundError: if there is no file.
        InputError: if a line is not in this format, or two lines disagree about a pair.
    """
    names = [name for name in storage.list_names(folder) if name.endswith(".tsv")]
    if not names:
        raise NotFoundError(f"{folder}: no .tsv file with relevance judgements")
    grades: Grades = {}
    for name in ["test.tsv"] if "test.tsv" in names else names:
        _read_file(storage.join(folder, name), grades)
    return grades


def _read_file(uri: str, grades: Grades) -> None:
    try:
        lines = storage.read_bytes(uri).decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: not in BEIR format: {error}") from error
    rows = [(number, _split(line)) for number, line in enumerate(lines, start=1) if line.strip()]
    order = _header(rows[0][1]) if rows else None
    for number, cells in rows[1:] if order else rows:
        columns = order or ORDERS.get(len(cells), [])
        found = dict(zip(columns, cells, strict=True)) if len(cells) == len(columns) else {}
        grade = _grade(found.get("grade", ""))
        if grade is None:
            raise InputError(
                f"{uri}:{number}: not in BEIR format: got {' '.join(cells)[:200]!r}; expected query-id, "
                "corpus-id and an integer, separated by tabs, below a header such as "
                "query-id corpus-id score, or without one"
            )
        pair = found["query"], found["document"]
        if grades.setdefault(pair, grade) != grade:
            raise InputError(f"{uri}:{number}: grade {grade}; the same pair has {grades[pair]} before")


def _split(line: str) -> list[str]:
    """The columns of a line: ids can contain spaces if tabs separate them."""
    cells = line.split("\t")
    return cells if len(cells) in ORDERS else line.split()


def _header(cells: list[str]) -> list[str] | None:
    """The kinds of the columns if their names form a header."""
    names = [cell.strip().lower().translate(str.maketrans("", "", " -_")) for cell in cells]
    kinds = [kind for name in names for kind, known in COLUMNS.items() if name in known]
    is_header = len(kinds) == len(names) and sorted(kinds) == sorted(ORDERS.get(len(kinds), []))
    return kinds if is_header and _grade(cells[kinds.index("grade")]) is None else None


def _grade(text: str) -> int | None:
    """The integer that a cell contains, such as `2`, `-1` or `2.0`, or None."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if abs(value) <= MAX_GRADE and value.is_integer() else None
