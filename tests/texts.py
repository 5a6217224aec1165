"""Real texts available on every machine: docstrings and code of the standard library."""

import ast
import inspect
import json
import os
import sysconfig
from collections.abc import Iterator


def functions(package: str) -> Iterator[tuple[str, str]]:
    """(docstring, code without it) of each documented function of a standard library package or module."""
    root = os.path.join(sysconfig.get_path("stdlib"), package)
    files = (
        [f"{root}.py"]
        if os.path.isfile(f"{root}.py")
        else sorted(os.path.join(root, n) for n in os.listdir(root))
    )
    for path in files:
        if not path.endswith(".py"):
            continue
        with open(path, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and len(node.body) > 1 and (text := ast.get_docstring(node)):
                node.body = node.body[1:]
                yield " ".join(inspect.cleandoc(text).split())[:200], ast.unparse(node)[:400]


def write_jsonl(path: str, rows: list[dict]) -> str:
    """Write one JSON object per line."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return path


def write_beir(directory: str, pairs: list[tuple[str, str]]) -> str:
    """Write a BEIR directory with docstrings as queries and their code as documents."""
    write_jsonl(os.path.join(directory, "corpus.jsonl"),
                [{"_id": f"d{i}", "title": "", "text": c} for i, (_, c) in enumerate(pairs)])  # fmt: skip
    write_jsonl(os.path.join(directory, "queries.jsonl"),
                [{"_id": f"q{i}", "text": text} for i, (text, _) in enumerate(pairs)])  # fmt: skip
    os.makedirs(os.path.join(directory, "qrels"), exist_ok=True)
    with open(os.path.join(directory, "qrels", "test.tsv"), "w", encoding="utf-8") as file:
        file.write("query-id\tcorpus-id\tscore\n")
        file.writelines(f"q{i}\td{i}\t1\n" for i in range(len(pairs)))
    return directory


def write_corpus(directory: str, num_rows: int = 48) -> dict[str, str]:
    """Write a retrieval and a classification task; returns the path of each."""
    packages = {"email": "email: messages and MIME", "json": "json: encoding", "argparse": "argparse: flags",
                "ipaddress": "ipaddress: networks"}  # fmt: skip
    pairs = [(package, *pair) for package in packages for pair in list(functions(package))[: num_rows // 4]]
    retrieval = [
        {"query": text, "pos": [code], "neg": [other for _, _, other in pairs[i - 3 : i] if other != code]}
        for i, (_, text, code) in enumerate(pairs)
    ]
    classification = [
        {
            "query": text,
            "pos": [packages[name]],
            "neg": [label for key, label in packages.items() if key != name],
        }
        for name, text, _ in pairs
    ]
    return {
        "docstring-to-code": write_jsonl(os.path.join(directory, "docstring-to-code.jsonl"), retrieval),
        "docstring-to-package": write_jsonl(
            os.path.join(directory, "docstring-to-package.jsonl"), classification
        ),
    }
