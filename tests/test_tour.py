"""The notebook of the tour runs from top to bottom."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import boom_ray as boom

TOUR = Path(__file__).parents[1] / "jobs" / "tour.ipynb"


def cells(kind: str) -> list[dict[str, Any]]:
    """The cells of one kind, in order."""
    notebook = json.loads(TOUR.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_no_outputs_are_stored():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells("code"))
    assert cells("markdown")


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_every_cell_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "tour"}
    for cell in cells("code"):
        exec(compile("".join(cell["source"]), cell["id"], "exec"), names)
    run, child = names["run"], names["child"]
    assert run.model == f"{tmp_path}/runs/tour/models/v0001"
    assert list(run.scores.to_frame().index) == ["asyncio", "email", "mean all"]
    assert names["bags"].config.rows[0] < names["bags"].config.rows[1]
    assert 0 < names["angle"] < 90
    assert len(names["index"]) == len(names["codes"]) and names["index"].shape[1] == 384
    assert any("decode" in line for line in names["answers"])
    assert np.allclose(names["served"], names["model"].encode("decode a base64 string"), atol=1e-4)
    assert child.model == f"{tmp_path}/runs/tour/models/v0002"
    assert set(child.metrics.change) == {"old_mean", "new_mean"}
    assert [version.is_current for version in boom.models(run)] == [False, True]
