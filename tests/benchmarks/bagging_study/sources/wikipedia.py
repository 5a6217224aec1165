"""Articles of Wikipedia, which gensim ships as test data: title and heading, and the section's beginning."""

import bz2
import html
import re
from collections.abc import Iterator
from xml.etree import ElementTree

from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs

DUMP = "gensim/test/test_data/enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
HEADING = re.compile(r"^==+\s*(.*?)\s*==+\s*$", re.MULTILINE)
SKIPPED = {
    "see also",
    "references",
    "external links",
    "notes",
    "further reading",
    "bibliography",
    "footnotes",
    "sources",
}
#: Innermost templates, tables, comments, references, files, and links with or without a label.
MARKUP = [
    (
        re.compile(
            r"<ref[^>/]*/>|<ref.*?</ref>|<!--.*?-->|<(math|gallery|timeline|source).*?</\1>", re.DOTALL
        ),
        "",
    ),
    (re.compile(r"\{\{[^{}]*\}\}|\{\|[^{}]*?\|\}", re.DOTALL), ""),
    (re.compile(r"\[\[(?:File|Image|Category):[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]"), ""),
    (re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]"), r"\1"),
    (re.compile(r"\[\S+ ([^\]]*)\]|<[^>]+>|'{2,}"), r"\1"),
]


def heading_to_text(inputs: Inputs) -> Iterator[Example]:
    """`title: heading`, and the section's first paragraph of prose; similar are those of the same article."""
    for title, text in articles(inputs):
        opening, *rest = HEADING.split(text)
        for heading, section in [("summary", opening), *zip(rest[::2], rest[1::2], strict=True)]:
            paragraph = next(
                (line for line in section.splitlines() if re.match(r"[A-Z].{80,}\.", line)), None
            )
            if paragraph and heading.casefold() not in SKIPPED:
                yield Example(f"{title}: {heading}", (paragraph,), title, title)


def articles(inputs: Inputs) -> Iterator[tuple[str, str]]:
    """Title and plain text of the articles that are not redirects."""
    with bz2.open(inputs.wheel("gensim") / DUMP) as file:
        for _, page in ElementTree.iterparse(file):
            if page.tag.endswith("}page"):
                fields = {item.tag.rpartition("}")[2]: item.text or "" for item in page.iter()}
                if not fields["text"].startswith("#"):
                    yield fields["title"], plain(fields["text"])
                page.clear()


def plain(markup: str) -> str:
    """The text of wiki markup, without templates, tables, references and images."""
    before = ""
    while before != markup:
        before = markup
        for pattern, replacement in MARKUP:
            markup = pattern.sub(replacement, markup)
    return html.unescape(markup)
