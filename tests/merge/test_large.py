"""Merges as commands: far larger than the memory of their processes, and on an object store."""

import os
import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import psutil
import pyarrow.fs
import pytest
from safetensors import safe_open

from boom_ray import artifacts, storage
from boom_ray.artifacts.tensors import create_file, header
from boom_ray.pipeline.publish import merge_models
from boom_ray.recipe import Merge
from tests.merge.test_actors import variant
from tests.object_store import s3_server

SWIFT = os.environ.get("BOOM_RAY_SWIFT_ENV")

GIB = 1 << 30
ROWS, COLUMNS, NUM_TENSORS, NUM_MODELS = 1 << 15, 1 << 11, 32, 6  # bfloat16: 4 GiB for each of 6 models
MARK = 64  # elements at the front of every tensor that are not zero; the rest is a hole in the sparse file


def write_model(path: str, seed: int) -> str:
    """A model of 4 GiB, sparse on disk."""
    os.makedirs(path)
    tensors = {f"layers.{i}.weight": ("BF16", (ROWS, COLUMNS)) for i in range(NUM_TENSORS)}
    file_path = os.path.join(path, "model.safetensors")
    create_file(file_path, tensors)
    _, offsets = header(tensors)
    generator = np.random.default_rng(seed)
    with open(file_path, "r+b") as file:
        for offset in offsets.values():
            file.seek(offset)
            values = generator.standard_normal(MARK).astype(np.float32)
            file.write((values.view(np.uint32) >> 16).astype(np.uint16).tobytes())
    with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as file:
        file.write('{"model_type": "qwen3", "hidden_size": 2048}')
    return path


@pytest.fixture(scope="module")
def bucket(tmp_path_factory) -> Iterator[str]:
    """A bucket on a real S3 server, for this process and all that it starts."""
    if not SWIFT:
        pytest.skip("BOOM_RAY_SWIFT_ENV is not set; tests/run.sh sets it")
    with (
        s3_server(SWIFT, str(tmp_path_factory.mktemp("s3"))) as variables,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in variables.items():
            patch.setenv(name, value)
        store, _ = pyarrow.fs.FileSystem.from_uri("s3://bucket?allow_bucket_creation=true")
        store.create_dir("bucket")
        yield "s3://bucket"


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "boom_ray.cli", "merge", *arguments, "--num-workers", "2"]


@pytest.mark.usefixtures("ray_cluster")
def test_inputs_and_output_on_an_object_store(published_qwen3, bucket, tmp_path):
    models = [variant(published_qwen3, str(tmp_path / str(seed)), seed) for seed in (1, 2)]
    stored = [f"{bucket}/models/{seed}" for seed in (1, 2)]
    for model, uri in zip(models, stored, strict=True):
        storage.copy_tree(model, uri)
    run = subprocess.run(command(*stored, "--out", f"{bucket}/merged"), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    merge_models(models, str(tmp_path / "merged"), None, Merge(space="weights"))
    assert artifacts.verify(f"{bucket}/merged").tensors == artifacts.verify(str(tmp_path / "merged")).tensors


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("on_store", [False, True], ids=["disk", "s3"])
def test_24_gib_are_merged_by_processes_of_3_gib(on_store, tmp_path, request):
    models = [write_model(str(tmp_path / str(seed)), seed) for seed in range(NUM_MODELS)]
    target = f"{request.getfixturevalue('bucket')}/large" if on_store else str(tmp_path / "out")
    limited = ["prlimit", f"--data={3 * GIB}", *command(*models, "--out", target)]
    run = subprocess.Popen(limited, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    largest = watch(run)
    assert run.returncode == 0, run.stdout.read() if run.stdout else ""
    print(f"largest anonymous memory of a worker: {largest / GIB:.2f} GiB")
    assert 0 < largest <= GIB
    assert len(artifacts.verify(target).tensors) == NUM_TENSORS
    merged = first_elements(storage.local_directory(target))
    assert np.isfinite(merged).all() and (merged[:MARK] != 0).any() and not merged[MARK:].any()


def watch(run: subprocess.Popen[str]) -> int:
    """Largest anonymous memory of a merge worker in bytes, sampled until the command ends."""
    largest = 0
    while True:
        try:
            run.wait(0.2)
            return largest
        except subprocess.TimeoutExpired:
            for process in psutil.Process(run.pid).children(recursive=True):
                largest = max(largest, anonymous(process))


def anonymous(process: psutil.Process) -> int:
    """Anonymous memory of a process, if it is a merge worker."""
    try:
        if "MergeWorker" not in " ".join(process.cmdline()):
            return 0
        with open(f"/proc/{process.pid}/status", encoding="utf-8") as file:
            found = [line.split()[1] for line in file if line.startswith("RssAnon")]
        return int(found[0]) << 10
    except (psutil.Error, OSError, IndexError):
        return 0


def first_elements(model: str) -> np.ndarray:
    """The elements of the first two rows of a merged tensor, as float32."""
    name = "layers.5.weight"
    for file in sorted(os.listdir(model)):
        if file.endswith(".safetensors"):
            with safe_open(os.path.join(model, file), "pt") as tensors:
                if name in tensors.keys():  # noqa: SIM118
                    return tensors.get_slice(name)[:2].float().numpy().ravel()
    raise AssertionError(f"{name} is not in {model}")
