"""The structure of the package in numbers: `python -m tests.structure [DIRECTORY]`, of any checkout."""

import ast
import io
import json
import os
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator

PACKAGE = "boom_ray"
LONG_FUNCTION = 40  # lines
Function = ast.FunctionDef | ast.AsyncFunctionDef
Edges = dict[str, set[str]]


def sources(root: str) -> dict[str, str]:
    """The text of every module of the package, by its dotted name; a package has the name of its folder."""
    found = {}
    for folder, _, files in sorted(os.walk(os.path.join(root, PACKAGE))):
        for file in (name for name in files if name.endswith(".py")):
            path = os.path.join(folder, file)
            name = os.path.relpath(path, root).removesuffix(".py").replace(os.sep, ".")
            with open(path, encoding="utf-8") as handle:
                found[name.removesuffix(".__init__")] = handle.read()
    return found


def imports(tree: ast.AST) -> Iterator[tuple[str, str]]:
    """Module and name of each import, inside functions too, but not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from ((node.module, alias.name) for alias in node.names)
        yield from imports(node)


def module_edges(trees: dict[str, ast.Module]) -> Edges:
    """The modules of the package that each module imports."""
    edges: Edges = {name: set() for name in trees}
    for name, tree in trees.items():
        for module, imported in imports(tree):
            target = f"{module}.{imported}" if f"{module}.{imported}" in trees else module
            if target in trees and target != name:
                edges[name].add(target)
    return edges


def room_edges(edges: Edges) -> Edges:
    """Imports between rooms: the folders of the package and the modules outside any folder."""
    rooms: Edges = defaultdict(set)
    for name, targets in edges.items():
        rooms[room_of(name)] |= {room_of(target) for target in targets}
    return {room: targets - {room} for room, targets in rooms.items()}


def room_of(module: str) -> str:
    """The room of a module; `boom_ray/__init__.py` is a room of its own."""
    return module.split(".")[1] if "." in module else module


def cycles(edges: Edges) -> list[list[str]]:
    """Groups of two or more nodes that all reach each other (strongly connected components)."""
    reached: Edges = {}
    for start in edges:
        seen, pending = set[str](), [start]
        while pending:
            new = edges[pending.pop()] - seen
            seen |= new
            pending += new
        reached[start] = seen
    groups = {frozenset(b for b in reached[a] if a in reached[b]) for a in edges}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def duplicated_classes(trees: dict[str, ast.Module]) -> dict[str, list[str]]:
    """Class names that are defined more than once, and the modules that define them."""
    found = defaultdict(list)
    for name, tree in trees.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                found[node.name].append(name)
    return {name: modules for name, modules in sorted(found.items()) if len(modules) > 1}


def functions(trees: dict[str, ast.Module]) -> list[tuple[int, str]]:
    """Length and name of every function, docstring included, the longest first."""
    found = [
        ((node.end_lineno or 0) - node.lineno + 1, f"{name}.{node.name}")
        for name, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, Function)
    ]
    return sorted(found, reverse=True)


def public_functions(body: list[ast.stmt]) -> Iterator[Function]:
    """Functions and methods without a leading underscore, outside other functions and private classes."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body) if isinstance(node, ast.ClassDef) else [node]


def percent_of_comments(texts: dict[str, str]) -> float:
    """The percentage of non-blank lines that contain a comment."""
    comments = lines = 0
    for text in texts.values():
        tokens = tokenize.generate_tokens(io.StringIO(text).readline)
        comments += sum(token.type == tokenize.COMMENT for token in tokens)
        lines += sum(bool(line.strip()) for line in text.splitlines())
    return 100 * comments / lines


def measure(root: str) -> dict[str, object]:
    """All numbers of a checkout."""
    texts = sources(root)
    trees = {name: ast.parse(text) for name, text in texts.items()}
    edges, lengths = module_edges(trees), functions(trees)
    public = [function for tree in trees.values() for function in public_functions(tree.body)]
    documented = sum(ast.get_docstring(function) is not None for function in public)
    longest = max(texts, key=lambda name: len(texts[name].splitlines()))
    with open(os.path.join(root, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    return {
        "loose files": sum(name.endswith(".py") for name in os.listdir(os.path.join(root, PACKAGE))),
        "rooms": len(rooms := room_edges(edges)),
        "room edges": sum(map(len, rooms.values())),
        "modules": len(trees),
        "module edges": sum(map(len, edges.values())),
        "module cycles": cycles(edges),
        "room cycles": cycles(rooms),
        "duplicated classes": duplicated_classes(trees),
        "longest function": f"{lengths[0][1]}: {lengths[0][0]} lines",
        f"functions over {LONG_FUNCTION} lines": sum(length > LONG_FUNCTION for length, _ in lengths),
        "longest file": f"{longest}: {len(texts[longest].splitlines())} lines",
        "README": f"{len(readme.split())} words, {len(readme.splitlines())} lines",
        "comment lines": f"{percent_of_comments(texts):.1f} %",
        "documented public functions": f"{documented} of {len(public)}",
    }


if __name__ == "__main__":
    directory = sys.argv[1] if len(sys.argv) > 1 else os.path.dirname(os.path.dirname(__file__))
    for key, value in measure(directory).items():
        print(f"{key}: {value if isinstance(value, str) else json.dumps(value)}")
