"""The README of the merge: its example runs, and its table has every method."""

import os
import re
from typing import get_args

import torch

import boom_ray
from boom_ray.merge.methods import METHODS
from boom_ray.recipe import Merge, MergeMethod
from tests.merge.oracle import ours

with open(os.path.join(os.path.dirname(boom_ray.__file__), "merge", "README.md"), encoding="utf-8") as file:
    README = file.read()


def test_the_example_of_a_new_method_merges_models():
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    try:
        exec(code, {})
        base, one, other = torch.randn(3, 1000, generator=torch.Generator().manual_seed(0)).double()
        norms = [(tensor - base).norm() for tensor in (one, other)]
        mean_norm = 0.25 * norms[0] + 0.75 * norms[1]
        units = [(tensor - base) / norm for tensor, norm in zip((one, other), norms, strict=True)]
        expected = base + mean_norm * (0.25 * units[0] + 0.75 * units[1])
        merged = ours("equal_norms", [one.float(), other.float()], [0.25, 0.75], base.float(), torch.float32)
        assert torch.allclose(merged.double(), expected, rtol=1e-6, atol=1e-6)
        assert METHODS["equal_norms"].needs_base
    finally:
        METHODS.pop("equal_norms", None)


def test_the_table_has_every_method_and_its_properties():
    rows = {row[0].strip(" `"): row for row in (line.strip("|").split("|") for line in table_lines())}
    assert set(rows) == set(get_args(MergeMethod))
    for name, row in rows.items():
        method = METHODS[name]
        *_, models, needs_base, _, settings = (cell.strip() for cell in row)
        least, most = method.num_models
        assert models == (str(least) if least == most else f"{least}+"), name
        assert (needs_base == "yes") == method.needs_base, name
        assert ("`weights`" in settings) == method.takes_weights, name
        assert set(re.findall(r"`(\w+)`", settings)) <= set(Merge.model_fields), name


def table_lines() -> list[str]:
    return [line.replace(r"\|", "") for line in README.splitlines() if line.startswith("| `")]
