"""Manual pages of Debian packages: name and one-line description, and the section DESCRIPTION."""

import gzip
import re
from collections.abc import Iterator

from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs

SECTION = re.compile(r'^\.SH "?([A-Z ]+?)"?\n(.*?)(?=^\.SH |\Z)', re.MULTILINE | re.DOTALL)
HIDDEN = re.compile(r"^\.(nf|Vb|CS|EX)\b.*?^\.(fi|Ve|CE|EE)\b", re.MULTILINE | re.DOTALL)  # code
FONT_MACRO = re.compile(r"^\.(?:B|I|BR|RB|BI|IB|IR|RI|SM|SB)\s+", re.MULTILINE)
CHARACTERS = {
    r"\-": "-",
    r"\(aq": "'",
    r"\(bu": "",
    r"\(em": "-",
    r"\(en": "-",
    r"\(lq": "",
    r"\(rq": "",
    r"\&": "",
}


def name_to_description(inputs: Inputs, *names: str) -> Iterator[Example]:
    """`name, name - what it does`, and the description; similar are the pages of the same package."""
    for name in names:
        for path in sorted(inputs.debian(name).glob("usr/share/man/man*/*.gz")):
            if path.is_symlink():
                continue
            sections = dict(SECTION.findall(gzip.decompress(path.read_bytes()).decode("utf-8", "replace")))
            if {"NAME", "DESCRIPTION"} <= sections.keys():
                title, text = plain(sections["NAME"]), plain(sections["DESCRIPTION"])
                yield Example(title, (text,), f"{name}/{path.name}", name)


def plain(roff: str) -> str:
    """The text of roff source: without code, macros, fonts and quotes of arguments."""
    text = FONT_MACRO.sub("", HIDDEN.sub("", roff))
    text = "\n".join(line for line in text.splitlines() if not line.startswith((".", "'")))
    for escape, character in CHARACTERS.items():
        text = text.replace(escape, character)
    text = re.sub(r"\\f(\(..|\[[^\]]*\]|.)|\\s[+-]?\d+|\\\*\(..|\\[|/ ^,]", "", text)
    return " ".join(text.replace('"', "").replace("\\e", "\\").split())
