"""Docstrings and code of Python packages, parsed as the quickstart does and never imported."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from jobs import quickstart_corpus
from tests.benchmarks.bagging_study.examples import Example
from tests.benchmarks.bagging_study.inputs import Inputs

MAX_PER_FILE = 24


def docstring_to_code(inputs: Inputs, *wheels: str) -> Iterator[Example]:
    """The first paragraphs of a docstring, and the code without it."""
    for wheel in wheels:
        yield from in_folder(inputs.wheel(wheel))


def code_to_docstring(inputs: Inputs, *wheels: str) -> Iterator[Example]:
    """The same pairs, the other way round."""
    for example in docstring_to_code(inputs, *wheels):
        (code,) = example.documents
        yield Example(code, (example.query,), example.unit, example.group)


def in_folder(folder: Path) -> Iterator[Example]:
    """The documented functions of all files below a folder; examples of a file are one unit and one group."""
    for name, path in quickstart_corpus.python_files(folder):
        functions = quickstart_corpus.functions_in(folder.name, name, path, seed=0)
        for function in islice(functions, MAX_PER_FILE):
            module = f"{folder.name}/{name}"
            yield Example(function.docstring, (function.code,), module, module)
