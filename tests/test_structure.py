"""The structure of the package keeps its goals: few loose files, no import cycles, unique class names."""

import os

import pytest

from tests import structure

ROOT = os.path.dirname(os.path.dirname(__file__))
A_CHECKOUT = {
    "README.md": "five words are in here\n",
    "boom_ray/__init__.py": '"""The package."""\n',
    "boom_ray/storage.py": "class Store:\n    def read(self): ...\n    def _open(self): ...\n",
    "boom_ray/merge/__init__.py": "",
    "boom_ray/merge/run.py": "from boom_ray import storage\nfrom boom_ray.merge.plan import Plan\n",
    "boom_ray/merge/plan.py": (
        "class Plan:\n    pass  # a comment\n\n"
        "def make():\n    '''Make one.'''\n    from boom_ray.merge import run\n    return run\n"
    ),
    "boom_ray/serve/__init__.py": "",
    "boom_ray/serve/plan.py": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from boom_ray.merge import run\n"
        "import boom_ray.storage\nclass Plan: ...\n"
    ),
}


@pytest.fixture(scope="module")
def measured() -> dict[str, object]:
    return structure.measure(ROOT)


def test_at_most_six_files_are_loose(measured):
    assert measured["loose files"] <= 6


def test_no_modules_and_no_rooms_import_each_other_in_a_cycle(measured):
    assert measured["module cycles"] == []
    assert measured["room cycles"] == []


def test_class_names_are_unique(measured):
    assert measured["duplicated classes"] == {}


def test_the_numbers_of_a_small_checkout(tmp_path):
    for name, text in A_CHECKOUT.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert structure.measure(str(tmp_path)) == {
        "loose files": 2,
        "rooms": 4,
        "room edges": 2,  # merge and serve import storage; the import for type checkers does not count
        "modules": 7,
        "module edges": 4,
        "module cycles": [["boom_ray.merge.plan", "boom_ray.merge.run"]],
        "room cycles": [],
        "duplicated classes": {"Plan": ["boom_ray.merge.plan", "boom_ray.serve.plan"]},
        "longest function": "boom_ray.merge.plan.make: 4 lines",
        "functions over 40 lines": 0,
        "longest file": "boom_ray.merge.plan: 7 lines",
        "README": "5 words, 1 lines",
        "comment lines": "5.9 %",
        "documented public functions": "1 of 2",
    }
