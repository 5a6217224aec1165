"""Dictionaries in the format of dictd: FOLDOC (dict-foldoc), a dictionary of computing, and the Jargon File.

Entries that FOLDOC has from the Jargon File are left out, because that chooses settings and FOLDOC measures
them.
"""

import gzip
import re
from collections.abc import Iterator

from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs

ENTRY = re.compile(r"^(?P<term>\S.*)\n(?:\S.*\n)*\n?(?P<text>(?:[ \t]+.*\n|\n)+)", re.MULTILINE)
#: Pronunciation and class of word of the Jargon File, subject of FOLDOC, and dates of the entry.
LABEL = re.compile(
    r"^(/\S+/,?\s*)?((n|v|vi|vt|adj|adv|prov|excl|interj|obs)\.,?\s*)*|^<[^>]+>|\(\d{4}-\d\d-\d\d\)|\[[^\]]*\]"
)


def term_to_definition(inputs: Inputs, package: str) -> Iterator[Example]:
    """A term, and what is written about it."""
    (path,) = inputs.debian(package).glob("usr/share/dictd/*.dict.dz")
    for match in ENTRY.finditer(gzip.decompress(path.read_bytes()).decode("utf-8")):
        text = " ".join(match["text"].split())
        if "Jargon File" in text:
            continue
        while text != (text := LABEL.sub("", text).strip()):
            pass
        term = match["term"].strip()
        yield Example(term, (re.sub(r"[{}]", "", text),), term.casefold(), package)
