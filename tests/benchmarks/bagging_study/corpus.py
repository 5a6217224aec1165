"""The corpus: training rows and evaluation tasks of all sources, a pure function of the pinned inputs.

DIR/train/TASK.jsonl                                training rows with hard negatives
DIR/development/{in_domain,out_of_domain}/TASK/     BEIR directories that choose settings
DIR/test/{in_domain,out_of_domain}/TASK/            BEIR directories that are reported
DIR/corpus.json                                     a hash of all of these, and their sizes
"""

import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from tests import texts
from tests.benchmarks.bagging_study.examples import PARTS, Example, cleaned, digest, distinct, shuffled
from tests.benchmarks.bagging_study.inputs import Inputs
from tests.benchmarks.bagging_study.tasks import TASKS, StudyTask

NUM_NEGATIVES = 4
MAX_CANDIDATES = 64  # of the same group, from which negatives are chosen
CONTENT = "corpus.json"


@dataclass(frozen=True)
class Sizes:
    """Largest numbers of rows, queries and documents.

    Attributes:
        rows: Training rows of a task.
        development: Queries and documents of a task that chooses settings.
        in_domain: The same for the test of a task that is trained on.
        out_of_domain: The same for the test of a source that is not.
    """

    rows: int = 400
    development: tuple[int, int] = (80, 250)
    in_domain: tuple[int, int] = (220, 400)
    out_of_domain: tuple[int, int] = (460, 800)


@dataclass(frozen=True)
class Corpus:
    """A corpus on disk."""

    directory: Path

    @cached_property
    def content(self) -> dict[str, Any]:
        """`fingerprint`, and `tasks`: part -> task -> numbers of rows, or of queries and documents."""
        return json.loads((self.directory / CONTENT).read_text())

    @property
    def fingerprint(self) -> str:
        """Identifies the content of all files."""
        return self.content["fingerprint"]

    def training_files(self) -> dict[str, Path]:
        """Task -> training rows."""
        return {path.stem: path for path in sorted((self.directory / "train").glob("*.jsonl"))}


def build(
    inputs: Inputs, directory: Path, tasks: Sequence[StudyTask] = TASKS, sizes: Sizes = Sizes()
) -> Corpus:
    """The corpus in a directory, built if it is not there.

    Args:
        inputs: Where the sources read.
        tasks: All or some of `TASKS`.
    """
    if not (directory / CONTENT).exists():
        scratch = directory.with_name(f"{directory.name}.partial")
        shutil.rmtree(scratch, ignore_errors=True)
        counts: dict[str, dict[str, Any]] = defaultdict(dict)
        for task in tasks:
            for part, numbers in _write(task, inputs, scratch, sizes):
                counts[part][task.name] = numbers
        content = {"fingerprint": _fingerprint(scratch), "tasks": counts}
        (scratch / CONTENT).write_text(json.dumps(content, indent=1))
        scratch.rename(directory)
    return Corpus(directory)


def _write(task: StudyTask, inputs: Inputs, root: Path, sizes: Sizes) -> Iterator[tuple[str, dict[str, int]]]:
    """Write the files of one task; yields their part of the corpus and their numbers."""
    examples = list(distinct(shuffled(cleaned(task.read(inputs))), task.labels))
    of_part = {part: [example for example in examples if example.part == part] for part in PARTS}
    if task.use == "trained":
        training = of_part["train"][: sizes.rows]
        texts.write_jsonl(str(root / "train" / f"{task.name}.jsonl"), list(_rows(training)))
        yield "train", {"rows": len(training)}
        measured = [
            ("development/in_domain", of_part["development"], sizes.development),
            ("test/in_domain", of_part["test"], sizes.in_domain),
        ]
    elif task.use == "development":
        measured = [("development/out_of_domain", examples, sizes.development)]
    else:
        measured = [("test/out_of_domain", examples, sizes.out_of_domain)]
    for folder, asked, limits in measured:
        yield folder, _write_beir(root / folder / task.name, asked, limits)


def _rows(examples: list[Example]) -> Iterator[dict[str, Any]]:
    """Training rows; the negatives are documents of the same group, and of others if those are too few."""
    groups: dict[str, list[Example]] = defaultdict(list)
    for example in examples:
        groups[example.group].append(example)
    for example in examples:
        near = groups[example.group][:MAX_CANDIDATES]
        others = [*_order(near, example), *_order(examples[:MAX_CANDIDATES], example)]
        documents = (text for other in others for text in other.documents if text not in example.documents)
        negatives = list(islice(dict.fromkeys(documents), NUM_NEGATIVES))
        yield {"query": example.query, "pos": list(example.documents), "neg": negatives}


def _order(candidates: list[Example], example: Example) -> list[Example]:
    """Examples about something else, in an order of their own for each example."""
    others = [other for other in candidates if other.unit != example.unit]
    return sorted(others, key=lambda other: digest("negative", example.query, other.query))


def _write_beir(directory: Path, examples: list[Example], limits: tuple[int, int]) -> dict[str, int]:
    """Write a retrieval task; its documents answer its queries, and further ones those of other examples."""
    num_queries, num_documents = limits
    asked = examples[:num_queries]
    answers = dict.fromkeys(text for example in asked for text in example.documents)
    more = (text for example in examples[num_queries:] for text in example.documents)
    fill = (text for text in dict.fromkeys(more) if text not in answers)
    documents = [*answers, *islice(fill, max(0, num_documents - len(answers)))]
    identities = {text: f"d{index:04}" for index, text in enumerate(documents)}
    rows = [{"_id": identity, "title": "", "text": text} for text, identity in identities.items()]
    queries = [{"_id": f"q{index:04}", "text": example.query} for index, example in enumerate(asked)]
    texts.write_jsonl(str(directory / "corpus.jsonl"), rows)
    texts.write_jsonl(str(directory / "queries.jsonl"), queries)
    (directory / "qrels").mkdir()
    judgements = [
        f"q{index:04}\t{identities[text]}\t1\n"
        for index, example in enumerate(asked)
        for text in example.documents
    ]
    (directory / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judgements))
    return {"queries": len(queries), "documents": len(documents)}


def _fingerprint(directory: Path) -> str:
    """A hash of the names and contents of all files."""
    found = hashlib.sha256()
    for path in sorted(path for path in directory.rglob("*") if path.is_file()):
        found.update(f"{path.relative_to(directory)}\0{path.stat().st_size}\0".encode() + path.read_bytes())
    return found.hexdigest()[:16]
