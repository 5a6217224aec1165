"""One row of contrastive data: its columns understood, its values checked, and both normalized to one schema.

The schema is FlagEmbedding's (`query`, `pos`, `neg`, optional `prompt`, `pos_scores`, `neg_scores`), because
the public data of the paper uses it. The usual column names of sentence-transformers, CornStack and question
answering are read too. What a column means is never guessed: a grade or label of a pair is refused.
"""

import re
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

TEXTS = pa.list_(pa.string())
SCORES = pa.list_(pa.float32())
SCHEMA = pa.schema(
    [
        ("query", pa.string()),
        ("pos", TEXTS),
        ("neg", TEXTS),
        ("prompt", pa.string()),
        ("pos_scores", SCORES),
        ("neg_scores", SCORES),
        ("answers", TEXTS),
    ]
)
POSITIVE = ("pos", "positive", "positives")
#: Columns that hold a positive unless a grade or label in the row says how well the pair matches.
PAIRED = ("document", "passage", "answer", "sentence2")
ALIASES = {
    "query": ("query", "anchor", "question", "sentence1"),
    "pos": (*POSITIVE, *PAIRED),
    "neg": ("neg", "negatives"),
}
NUMBERED_NEGATIVE = re.compile(r"negative(_\d+)?")
OPTIONAL = ("prompt", "pos_scores", "neg_scores", "answers")
GRADES = ("label", "labels", "score", "similarity_score")
FLOAT32_MAX = 3.4028234663852886e38


class BadRow(ValueError):
    """The reason why one row cannot be used."""


def normalize(raw: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Check one row and normalize it to `SCHEMA`; optional columns that are null or empty count as absent.

    Returns:
        The row, and the number of negatives dropped because they repeat one or equal a positive.

    Raises:
        BadRow: with the reason.
    """
    query = _query(raw)
    listed = _texts("pos", _positives(raw))
    if not listed:
        raise BadRow(f"pos is missing or empty. {_columns(raw)}")
    given = _texts("neg", _negatives(raw))
    pos_scores = _scores(raw, "pos_scores", len(listed))
    neg_scores = _scores(raw, "neg_scores", len(given))
    positives = _first_of_each(listed)
    pos = [listed[index] for index in positives]
    further = [] if _absent(raw.get("answers")) else _texts("answers", raw["answers"])
    answers = [text for text in dict.fromkeys(further) if text not in pos]
    negatives = _first_of_each(given, without={*pos, *answers})
    row = {
        "query": query,
        "pos": pos,
        "neg": [given[index] for index in negatives],
        "prompt": _prompt(raw),
        "pos_scores": pos_scores and [pos_scores[index] for index in positives],
        "neg_scores": neg_scores and [neg_scores[index] for index in negatives],
        "answers": answers or None,
    }
    return row, len(given) - len(negatives)


def understood(column: str) -> bool:
    """Whether a column of this name has a meaning for training."""
    names = {*sum(ALIASES.values(), ()), *OPTIONAL}
    return column in names or NUMBERED_NEGATIVE.fullmatch(column) is not None


def _first_of_each(texts: list[str], without: Iterable[str] = ()) -> list[int]:
    """Indices of the first occurrence of every distinct text that is not among `without`."""
    seen, kept = set(without), []
    for index, text in enumerate(texts):
        if text not in seen:
            seen.add(text)
            kept.append(index)
    return kept


def _query(raw: dict[str, Any]) -> str:
    column = _column(raw, "query")
    if column is None:
        raise BadRow(f"query is missing. {_columns(raw)}")
    query = raw[column]
    if not isinstance(query, str):
        raise BadRow(f"query is not a text but {_kind(query)}")
    _texts("query", query)
    return query


def _positives(raw: dict[str, Any]) -> Any:
    """The column of the positives.

    Raises:
        BadRow: if the row pairs two texts and grades the pair, so that it may not be a positive.
    """
    column = _column(raw, "pos")
    grade = next((name for name in GRADES if not _absent(raw.get(name))), None)
    if column in PAIRED and grade:
        raise BadRow(
            f"{grade} grades the pair, and the meaning of its values is unknown. Keep rows whose {column} "
            f"is a positive, rename {column} to positive, and drop {grade}"
        )
    return None if column is None else raw[column]


def _prompt(raw: dict[str, Any]) -> str | None:
    prompt = raw.get("prompt")
    if _absent(prompt):
        return None
    if not isinstance(prompt, str):
        raise BadRow(f"prompt is not a text but {_kind(prompt)}")
    _encodable("prompt", prompt)
    return prompt


def _column(raw: dict[str, Any], key: str) -> str | None:
    """The first name of a column that has a value, or else one that is empty; None if all are missing."""
    filled = (name for name in ALIASES[key] if not _absent(raw.get(name)))
    return next(filled, next((name for name in ALIASES[key] if raw.get(name) is not None), None))


def _absent(value: Any) -> bool:
    return value is None or value == [] or (isinstance(value, str) and not value.strip())


def _negatives(raw: dict[str, Any]) -> list[Any]:
    """The texts of `neg`, of an alias, or of the columns `negative`, `negative_1`, …"""
    listed = [name for name in ALIASES["neg"] if not _absent(raw.get(name))]
    names = listed[:1] or [name for name in raw if NUMBERED_NEGATIVE.fullmatch(name)]
    texts: list[Any] = []
    for name in names:
        value = [] if _absent(raw[name]) else raw[name]
        if not isinstance(value, str | list):
            raise BadRow(f"{name} is not a list of texts but {_kind(value)}")
        texts += [value] if isinstance(value, str) else value
    return texts


def _columns(raw: dict[str, Any]) -> str:
    """The columns that a row has, and those that have a meaning."""
    found = ", ".join(sorted(str(name) for name, value in raw.items() if value is not None)) or "none"
    meanings = "; ".join(f"{key} (or {', '.join(names[1:])})" for key, names in ALIASES.items())
    labelled = raw.get("text") is not None and any(raw.get(name) is not None for name in GRADES)
    remedy = " A label is not a text to embed: write the label's text to pos, and others to neg." * labelled
    optional = ", ".join(OPTIONAL)
    return f"Columns with a value: {found}; understood: {meanings}, negative_1 …, {optional}.{remedy}"


def _texts(key: str, value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(texts, list):
        raise BadRow(f"{key} is not a list of texts but {_kind(texts)}")
    for text in texts:
        if not isinstance(text, str):
            raise BadRow(f"{key} is not a list of texts: it holds {_kind(text)}")
        if not text.strip():
            raise BadRow(f"{key} holds an empty text")
        _encodable(key, text)
    return texts


def _encodable(key: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BadRow(f"{key} holds half of a surrogate pair") from error


def _scores(raw: dict[str, Any], key: str, expected: int) -> list[float] | None:
    scores = raw.get(key)
    if _absent(scores):
        return None
    scores = scores if isinstance(scores, list) else [scores]
    for score in scores:
        if isinstance(score, bool) or not isinstance(score, int | float):
            raise BadRow(f"{key} is not a list of numbers: it holds {_kind(score)}")
        if not abs(score) <= FLOAT32_MAX:  # not a number compares as false
            raise BadRow(f"{key} holds a number that is not finite in 32 bits")
    if len(scores) != expected:
        raise BadRow(f"{key} has {len(scores)} numbers for {expected} texts")
    return [float(score) for score in scores]


def _kind(value: Any) -> str:
    """The type of a value in the words of JSON."""
    kinds = {dict: "an object", list: "a list", tuple: "a list", bool: "true or false", type(None): "null"}
    return kinds.get(type(value)) or ("a number" if isinstance(value, int | float) else type(value).__name__)
