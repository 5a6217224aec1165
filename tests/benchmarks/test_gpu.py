"""The GPU bench on a CPU: every section runs, and one that fails keeps no other from running."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import gpu
from tests.benchmarks.gpu_sections.process import run_section

COMMAND = [sys.executable, os.path.join(gpu.ROOT, "tests", "benchmarks", "gpu.py")]


def bench(out: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], list[dict]]:
    """Run the bench where no GPU is visible; returns what it printed, and its lines by section and case."""
    environment = {**os.environ, "OUT": str(out), "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run([*COMMAND, *arguments], env=environment, capture_output=True, text=True)
    file = out / "gpu.jsonl"
    return run, list(map(json.loads, file.read_text().splitlines())) if file.exists() else []


def test_cheap_sections_give_lines_and_a_table(tmp_path):
    run, lines = bench(tmp_path, "--tiny", "ceilings", "merge")
    assert run.returncode == 0, run.stderr
    figures = {(line["section"], line["case"]): line for line in lines}
    assert figures["ceilings", "bf16 product 256"]["tflops"] > 0
    assert figures["ceilings", "copy on the device"]["gb_per_second"] > 0
    assert figures["merge", "Gram pass, blocks of 32,768"]["error"] < 1e-4
    assert run.stdout.splitlines()[: len(lines)] == list(map(json.dumps, lines))
    assert {line["card"] for line in lines if "card" in line} == {"CPU"}
    for (section, case), table_row in zip(figures, run.stdout.splitlines()[-len(lines) :], strict=True):
        assert table_row.startswith(section) and case in table_row


def test_without_a_gpu_it_refuses(tmp_path):
    run, lines = bench(tmp_path)
    assert run.returncode == 1 and lines == []
    assert "no GPU" in run.stderr and "--tiny" in run.stderr


def test_a_section_that_fails_does_not_keep_the_others(tmp_path):
    lines, passed = gpu.run_sections(("no_such_section", "ceilings"), True, str(tmp_path), str(tmp_path))
    assert not passed
    assert [line["section"] for line in lines if line["case"] == "FAILED"] == ["no_such_section"]
    assert (
        lines[0]["reason"] == "exit code 1"
        and "ModuleNotFoundError" in (tmp_path / "no_such_section.log").read_text()
    )
    assert lines[-1]["section"] == "ceilings" and lines[-1]["case"] == "whole section"


def test_a_late_section_is_killed(tmp_path):
    lines: list[dict] = []
    options = [str(tmp_path), str(tmp_path), "--tiny"]
    assert not run_section("ceilings", options, str(tmp_path / "log"), 0.1, lines.append)
    assert [line["case"] for line in lines] == ["FAILED"] and "0 s" in lines[0]["reason"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_all_sections(tmp_path):
    run, lines = bench(tmp_path, "--tiny")
    assert run.returncode == 0, run.stderr
    figures = {line["case"]: line for line in lines}
    assert [line["section"] for line in lines if line["case"] == "whole section"] == list(gpu.SECTIONS)
    for kind in ("full", "mixed"):
        for tool in ("boom-ray", "sentence-transformers"):
            assert figures[f"{tool}, {kind} lengths"]["tokens_per_second"] > 0
            assert figures[f"{tool}, 0.6B, {kind} lengths"]["tokens_per_second"] > 0
        assert figures[f"boom-ray, 4B, {kind} lengths"]["smallest_cosine"] > 0.99
    for name in ("train", "embed"):
        assert "Self CPU" in (tmp_path / f"profile_{name}.txt").read_text()
    assert figures["boom-ray, clients: 8"]["errors"] == 0
    resumed = figures["boom-ray run, ZeRO 3, killed and resumed"]
    assert resumed["resumed_at_step"] > resumed["saved_step"]
