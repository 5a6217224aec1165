"""WordNet (Debian's wordnet-base): words and their definitions, uses and their definitions."""

import re
from collections.abc import Iterator

from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs

LINE = re.compile(r"\d{8} (?P<lexicographer>\d\d) \w (?P<count>[\da-f]{2}) (?P<rest>.*) \| (?P<gloss>.*)")


def words_to_gloss(inputs: Inputs) -> Iterator[Example]:
    """The synonyms of a synset, and its definition; similar are those of the same lexicographer file."""
    for words, definition, _, file in synsets(inputs):
        yield Example(", ".join(words), (definition,), words[0].casefold(), file)


def usage_to_gloss(inputs: Inputs) -> Iterator[Example]:
    """A word with a sentence that uses it, and its definition; similar are its other senses, then others."""
    for words, definition, sentences, _ in synsets(inputs):
        for sentence in sentences[:1]:
            used = next((word for word in words if word.casefold() in sentence.casefold()), None)
            if used:
                yield Example(f"{used}: {sentence}", (definition,), words[0].casefold(), used.casefold())


def synsets(inputs: Inputs) -> Iterator[tuple[list[str], str, list[str], str]]:
    """Words, definition, sentences that use one of them, and lexicographer file of all synsets."""
    for part in ("noun", "verb", "adj", "adv"):
        path = inputs.debian("wordnet-base") / f"usr/share/wordnet/data.{part}"
        for line in path.read_text(encoding="utf-8").splitlines():
            match = LINE.match(line)
            if match:
                fields = match["rest"].split()[: 2 * int(match["count"], 16)]
                words = [re.sub(r"\(\w+\)$", "", word).replace("_", " ") for word in fields[::2]]
                definition = re.split(r';\s*"', match["gloss"])[0].strip()
                sentences = re.findall(r'"([^"]{20,})"', match["gloss"])
                yield words, definition, sentences, f"{part}.{match['lexicographer']}"
