"""The Markdown files agree with the code: links, paths, names, commands, options and recipe keys exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import click
import pytest
import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from boom_ray import cli
from boom_ray.recipe import Recipe

ROOT = Path(__file__).parent.parent
SOURCES = ["*.md", ".github/*.md", "boom_ray/**/*.md", "cluster/**/*.md", "jobs/**/*.md", "tests/**/*.md"]
FILES = sorted(path for pattern in SOURCES for path in ROOT.glob(pattern))
NAMES = [str(path.relative_to(ROOT)) for path in FILES]
MOST_LINES = {"README.md": 200, ".github/CONTRIBUTING.md": 150}
WALKS, MOST_HOPS = 3, 12

each_file = pytest.mark.parametrize("path", FILES, ids=NAMES)


def prose(path: Path) -> str:
    """The text of a file without its code blocks."""
    return re.sub(r"^( *)```.*?^\1```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def code_spans(path: Path) -> list[str]:
    """The inline code of a file."""
    return [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose(path))]


# ── Links and length ───────────────────────────────────────────────────────────────────────────────


def anchors(path: Path) -> set[str]:
    """The anchors that GitHub makes of the headings of a file."""
    headings = re.findall(r"^#+ (.*)$", prose(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_file
def test_relative_links_lead_to_files_and_headings(path: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if re.match(r"\w+:", link):
            continue
        target, _, anchor = link.partition("#")
        found = (path.parent / target).resolve() if target else path
        assert found.exists(), link
        assert not anchor or anchor in anchors(found), link


@pytest.mark.parametrize("name", MOST_LINES)
def test_files_that_are_read_first_stay_short(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= MOST_LINES[name]


# ── Paths and names ────────────────────────────────────────────────────────────────────────────────


def defined(path: Path, name: str) -> bool:
    """Whether a Python file defines a function, class or method (`Class.method`)."""
    body: list[ast.stmt] = ast.parse(path.read_text()).body
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = next((node for node in body if isinstance(node, kinds) and node.name == part), None)
        if found is None:
            return False
        body = found.body
    return True


@each_file
def test_python_files_and_their_names_exist(path: Path) -> None:
    for span in code_spans(path):
        match = re.fullmatch(r"([\w/]+\.py)(?::([\w.]+))?", span)
        if match is None or match[1] == "jobs/VERB.py":
            continue
        places = [folder / match[1] for folder in (path.parent, ROOT / "boom_ray", ROOT)]
        found = next((place for place in places if place.is_file()), None)
        assert found is not None, span
        assert match[2] is None or defined(found, match[2]), span


def test_each_walk_is_short_and_every_hop_is_a_function_or_a_class() -> None:
    sections = re.split(r"^## ", (ROOT / "boom_ray/README.md").read_text(), flags=re.MULTILINE)
    walks = [re.findall(r"^\d+\. (.*)$", section, re.MULTILINE) for section in sections]
    walks = [hops for hops in walks if hops]
    assert len(walks) == WALKS
    for hops in walks:
        assert len(hops) <= MOST_HOPS
        assert [hop for hop in hops if not re.match(r"`[\w/]+\.py:[\w.]+` — ", hop)] == []


# ── Commands ───────────────────────────────────────────────────────────────────────────────────────


def commands(path: Path) -> Iterator[list[str]]:
    """The words of every command of ours in code blocks and inline code."""
    text = re.sub(r"\\\n", " ", path.read_text())
    blocks = re.findall(r"^ *```(?:bash|console)?\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    lines = [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    for line in [*lines, *code_spans(path)]:
        if match := re.match(r"(?:.* -- )?(?:boom-ray |python jobs/(?=\w+\.py))(.*)", line):
            lexer = shlex.shlex(match[1], posix=True, punctuation_chars=";|&<>")
            lexer.whitespace_split, words = True, list[str]()
            for word in lexer:
                if set(word) <= set(";|&<>"):
                    break
                words.append(word)
            yield words


@each_file
def test_commands_and_their_options_exist(path: Path) -> None:
    for verb, *words in filter(None, commands(path)):
        verb = verb.removesuffix(".py")
        if verb == "VERB" or verb.startswith("-"):
            continue
        assert verb in cli.main.commands, verb
        command: click.Command = cli.main.commands[verb]
        if isinstance(command, click.Group) and words:
            assert words[0] in command.commands, f"{verb} {words[0]}"
            command = command.commands[words[0]]
        options = {option for parameter in command.params for option in parameter.opts}
        used = {word.split("=")[0] for word in words if word.startswith("--")}
        assert used <= options, f"{verb}: {used - options}"


def test_the_readme_names_every_command() -> None:
    named = {words[0] for words in commands(ROOT / "README.md") if words}
    assert set(cli.main.commands) <= named


# ── Recipes ────────────────────────────────────────────────────────────────────────────────────────


def sections(section: type[BaseModel], name: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of a recipe by its path: `train.execution`, `data.tasks`."""
    yield name, section
    for key, field in section.model_fields.items():
        for inner in _models(field.annotation):
            yield from sections(inner, f"{name}.{key}".lstrip("."))


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for part in get_args(annotation):
        yield from _models(part)


SECTIONS = {
    section: name for name, section in sections(Recipe)
}  # one that is in two places once, at the last


@pytest.mark.parametrize(("section", "name"), SECTIONS.items(), ids=lambda value: str(value))
def test_the_reference_has_exactly_the_keys_of_each_section(section: type[BaseModel], name: str) -> None:
    text = (ROOT / "jobs/recipes/README.md").read_text()
    heading = f"`{name}`" if name else "Top level"
    match = re.search(rf"^### {re.escape(heading)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    assert match is not None, heading
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", match[1], re.MULTILINE))
    assert list(rows) == list(section.model_fields)
    for key, default in rows.items():
        field = section.model_fields[key]
        value = field.get_default(call_default_factory=True)
        assert default == expected_default(field) or yaml.safe_load(default.strip("`")) == value, key


def expected_default(field: FieldInfo) -> str | None:
    """The text for defaults that are not a value."""
    if field.is_required():
        return "required"
    if isinstance(field.default, BaseModel):
        return "section"
    return "none" if field.default is None else None
