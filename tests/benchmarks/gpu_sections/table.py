"""The results of all sections as a table for people."""

from collections.abc import Sequence
from typing import Any

NAMES = ("section", "case", "card")


def render(lines: Sequence[dict[str, Any]]) -> str:
    """One row per result; under the name of the card, which results of failed sections do not have."""
    cards = sorted({line["card"] for line in lines if "card" in line})
    rows = [(line["section"], line["case"], _figures(line)) for line in lines]
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:2]]
    body = [
        f"{section:<{widths[0]}}  {case:<{widths[1]}}  {figures}".rstrip() for section, case, figures in rows
    ]
    return "\n".join([", ".join(cards) or "no device", *body])


def _figures(line: dict[str, Any]) -> str:
    return "  ".join(
        f"{name}: {_text(value)}" for name, value in line.items() if name not in NAMES and value is not None
    )


def _text(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:,}" if isinstance(value, int | float) and not isinstance(value, bool) else str(value)
