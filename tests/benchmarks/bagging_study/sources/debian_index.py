"""Debian's package index: descriptions in English and German, short and long, and tags."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs

#: Sections of texts for developers; all others are applications.
LIBRARIES = {
    *("devel", "golang", "haskell", "java", "javascript", "libdevel", "libs", "ocaml", "perl", "php"),
    *("python", "ruby", "rust", "lisp", "oldlibs"),
}
#: Facets of tags that describe what software is about; the others concern its packaging.
FACETS = {
    "admin",
    "field",
    "game",
    "hardware",
    "security",
    "sound",
    "use",
    "web",
    "works-with",
    "works-with-format",
}
MAX_PER_SOURCE = 2  # binary packages of a source package are often described alike


@dataclass(frozen=True)
class Package:
    """The fields of a binary package that the tasks use."""

    name: str
    source: str
    section: str
    tags: list[str]
    short: str
    english: str
    german: str | None


def short_to_long(inputs: Inputs, libraries: bool) -> Iterator[Example]:
    """Descriptions of packages, short and long: of libraries, or of applications."""
    for package in packages(inputs):
        if (package.section in LIBRARIES) == libraries:
            yield Example(package.short, (package.english,), package.source, package.section)


def german_to_english(inputs: Inputs) -> Iterator[Example]:
    """Translated long descriptions, and the original."""
    for package in packages(inputs):
        if package.german:
            yield Example(package.german, (package.english,), package.source, package.section)


def long_to_tags(inputs: Inputs) -> Iterator[Example]:
    """Long descriptions, and the names of the tags of the package: labels, several of a query."""
    names = tag_names(inputs.debian("debtags") / "usr/share/debtags/vocabulary")
    for package in packages(inputs):
        labels = tuple(sorted({names[tag] for tag in package.tags if tag in names}))
        if labels:
            yield Example(package.english, labels, package.source, "tags")


def tag_names(vocabulary: Path) -> dict[str, str]:
    """Tag -> `Facet: name and explanation`, of the facets in `FACETS`."""
    names = {}
    for record in vocabulary.read_text(encoding="utf-8").split("\n\n"):
        fields = _fields(record)
        facet, _, name = fields.get("Tag", "").partition("::")
        if facet in FACETS and name:
            names[fields["Tag"]] = f"{facet.replace('-', ' ')}: {' '.join(fields['Description'].split())}"
    return names


def packages(inputs: Inputs) -> Iterator[Package]:
    """The packages with content and a long description, at most `MAX_PER_SOURCE` of a source package."""
    english, german = (_translations(inputs.index(f"Translation-{language}")) for language in ("en", "de"))
    counts: dict[str, int] = {}
    for record in inputs.index("Packages").read_text(encoding="utf-8").split("\n\n"):
        fields = _fields(record)
        key = fields.get("Description-md5", "")
        if key not in english or re.search("transitional|dummy|metapackage", fields["Description"]):
            continue
        source = fields.get("Source", fields["Package"]).split()[0]
        counts[source] = counts.get(source, 0) + 1
        if counts[source] <= MAX_PER_SOURCE:
            yield Package(
                name=fields["Package"],
                source=source,
                section=fields.get("Section", ""),
                tags=re.split(r",\s*", " ".join(fields.get("Tag", "").split())),
                short=fields["Description"].splitlines()[0],
                english=english[key],
                german=german.get(key),
            )


def _translations(path: Path) -> dict[str, str]:
    """MD5 of the English description -> long description in the language of the file."""
    found = {}
    for record in path.read_text(encoding="utf-8").split("\n\n"):
        fields = _fields(record)
        for name, text in fields.items():
            long = " ".join(line.strip() for line in text.splitlines()[1:] if line.strip() != ".")
            if re.fullmatch("Description-[a-z]{2}", name) and long:
                found[fields["Description-md5"]] = long
    return found


def _fields(record: str) -> dict[str, str]:
    """The fields of a record; continuation lines keep their line breaks."""
    return dict(re.findall(r"^([\w-]+): ?(.*(?:\n[ \t].*)*)", record, re.MULTILINE))
