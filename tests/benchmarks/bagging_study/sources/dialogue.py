"""Conversations of chatterbot-corpus: what one person says, and the other's response."""

from collections.abc import Iterator

import yaml

from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs


def statement_to_response(inputs: Inputs) -> Iterator[Example]:
    """Statement and response of the English conversations of one exchange or more."""
    for path in sorted(inputs.wheel("chatterbot-corpus").glob("chatterbot_corpus/data/english/*.yml")):
        for turns in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            statement, response = (str(turn) for turn in turns[:2])
            yield Example(statement, (response,), statement.casefold(), path.stem)
