"""EDAM, an ontology of bioinformatics (edam-ontology): names of concepts and their definitions."""

import csv
from collections.abc import Iterator

from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs


def term_to_definition(inputs: Inputs) -> Iterator[Example]:
    """The name and synonyms of a concept, and its definition."""
    with open(inputs.wheel("edam-ontology") / "edam_ontology/EDAM.tsv", encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            if row["Obsolete"] != "TRUE" and row["Definitions"]:
                synonyms = [name for name in row["Synonyms"].split("|") if name and "://" not in name]
                definition = row["Definitions"].split("|")[0]
                names = ", ".join([row["Preferred Label"], *synonyms[:2]])
                yield Example(names, (definition,), row["Class ID"], "edam")
