"""Every recipe that we ship passes a dry run, without a hub and without training."""

import glob
import os
import subprocess
import sys

import pytest

RECIPES = sorted(glob.glob(os.path.join(os.path.dirname(__file__), "..", "jobs", "recipes", "*.yaml")))


@pytest.mark.parametrize("path", RECIPES, ids=[os.path.basename(path) for path in RECIPES])
def test_a_dry_run_prints_bags_steps_schedule_and_cost(path, tmp_path, monkeypatch):
    from click.testing import CliRunner

    from boom_ray.cli import main

    for name in ("docstring-to-code", "code-to-docstring", "docstring-to-package"):
        for base in ("minilm", "qwen3", "update", "baseline"):
            file = tmp_path / base / "train" / f"{name}.jsonl"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text('{"query": "q", "pos": ["p"]}\n' * 640)
    monkeypatch.setenv("BOOM_RAY_HOME", str(tmp_path))
    monkeypatch.setenv("BOOM_RAY_STORAGE", str(tmp_path / "storage"))
    result = CliRunner().invoke(main, ["run", path, "--dry-run", "--ranks", "64"])
    assert result.exit_code == 0, result.output
    assert "bag-2: " in result.output and "schedule: room for 64 ranks" in result.output
    assert "x one pass over the corpus" in result.output and "|##" in result.output
    if "qwen3-0.6b-english" in path:
        assert "cost: 3.0x" in result.output and " 22,350 steps" in result.output
    assert not os.path.exists(tmp_path / "storage"), "a dry run leaves nothing behind"


def test_a_dry_run_starts_no_ray_and_says_what_does_not_fit(tmp_path):
    path = next(path for path in RECIPES if path.endswith("qwen3-4b-english.yaml"))
    code = (
        "import sys; from boom_ray.cli import main\n"
        "main(['run', sys.argv[1], '--dry-run'], standalone_mode=False)\n"
        "import ray; assert not ray.is_initialized()"
    )
    environment = {**os.environ, "BOOM_RAY_STORAGE": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code, path], check=True, env=environment, capture_output=True)
