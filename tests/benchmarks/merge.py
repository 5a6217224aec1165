"""Time and memory of a merge, alternating with mergekit and with the floor on the same files.

    python tests/benchmarks/merge.py [--cases base,plain] [--repeats 3]    one JSON line per case
    python tests/benchmarks/merge.py --scaling                             time over models, bytes and workers

Inputs are models with random weights and the shapes of Qwen3-0.6B, bfloat16: a base, and small
perturbations of it. Like all models of boom-ray they have a record, which the merge checks; mergekit
ignores it. Both tools are measured as whole processes, `boom-ray merge` including the Ray that it starts.
The same command on two-layer models measures the start-up; the rest is the *merge proper*. The floor
reads all inputs once, with as many threads as workers, and writes one output. Before every run the inputs
are read and dirty pages flushed, so that all runs start with the same page cache, which must have space
for the inputs.

`BOOM_RAY_MERGEKIT_PYTHON` is the path of a Python with mergekit; tests/run.sh creates one. Linux only
(/proc).
"""

import contextlib
import functools
import importlib.metadata
import itertools
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import click
import numpy as np
import psutil
import torch
import yaml
from safetensors import safe_open
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import Qwen3Config, Qwen3Model

from boom_ray import artifacts
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.staging import Stage
from boom_ray.merge.shard_writer import ShardWriter

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
WEIGHTS = "model.safetensors"
WORKERS = 2
SAMPLES_PER_SECOND = 20
SAMPLES_PER_SCAN = 5  # samples between scans for new processes, which are expensive
PIECE = 4 << 20  # elements
BUFFER = 8 << 20  # bytes
# mergekit writes shards while it computes the next, with as many threads as boom-ray has workers. torch keeps
# its default of a thread per core; computing in float32 would be slower.
MERGEKIT_FLAGS = ["--quiet", "--async-write", "--write-threads", "2", "--out-shard-size", "200M"]
SCALING_MODELS = (2, 5, 10)
SCALING_WORKERS = (1, 2)


@dataclass(frozen=True)
class Shape:
    """Size of a Qwen3; the defaults are those of Qwen3-0.6B."""

    layers: int = 28
    vocabulary: int = 151_936
    hidden: int = 1024
    intermediate: int = 3072
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128

    @property
    def name(self) -> str:
        """Name of its directory."""
        return f"{self.layers}x{self.hidden}-{self.vocabulary}"

    def config(self) -> Qwen3Config:
        """The configuration that is published with the weights."""
        return Qwen3Config(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            head_dim=self.head_dim,
            tie_word_embeddings=True,
            architectures=["Qwen3ForCausalLM"],
            dtype="bfloat16",
        )

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every weight."""
        with torch.device("meta"):
            return {
                name: tuple(tensor.shape) for name, tensor in Qwen3Model(self.config()).state_dict().items()
            }

    def quarter(self) -> "Shape":
        """A quarter of the layers and of the vocabulary, so a quarter of the bytes."""
        return Shape(max(1, self.layers // 4), self.vocabulary // 4, *self._widths())

    def _widths(self) -> tuple[int, int, int, int, int]:
        return self.hidden, self.intermediate, self.heads, self.kv_heads, self.head_dim


TOY = Shape(layers=2, vocabulary=1000, hidden=32, intermediate=64, heads=4, kv_heads=2, head_dim=8)


@dataclass(frozen=True)
class Inputs:
    """Model directories.

    Attributes:
        models: The models to merge.
        base: The model they are perturbations of, to merge task vectors; None to merge weights.
    """

    models: list[str]
    base: str | None

    @property
    def files(self) -> list[str]:
        """The weight files of all models."""
        return [os.path.join(path, WEIGHTS) for path in [*self.models, *([self.base] if self.base else [])]]

    @property
    def num_bytes(self) -> int:
        """Bytes of all weight files."""
        return sum(os.path.getsize(file) for file in self.files)

    @property
    def output_bytes(self) -> int:
        """Bytes of the merged weights."""
        return os.path.getsize(self.files[0])


@dataclass(frozen=True)
class Run:
    """Measurements of one command.

    Attributes:
        seconds: Wall time.
        streaming: Seconds from the first worker's start to the last byte written; None if not reported.
        peak: Peak anonymous memory of a merging process, in bytes.
        tree_peak: Peak of the sum over the command's process tree, in bytes.
    """

    seconds: float
    streaming: float | None
    peak: int
    tree_peak: int


@dataclass(frozen=True)
class Floor:
    """Seconds to read the inputs, to write an output, and to sync it to disk."""

    read: float
    write: float
    fsync: float


def make_models(root: str, shape: Shape, num_models: int) -> list[str]:
    """Publish a base and perturbations of it; models that exist below `root` are reused.

    Returns:
        Directories, that of the base first.
    """
    paths = [os.path.join(root, shape.name, f"model-{number}") for number in range(num_models + 1)]
    missing = [number for number, path in enumerate(paths) if not artifacts.read_record(path)]
    if not missing:
        return paths
    shapes = shape.tensors()
    declared = {name: ("BF16", size) for name, size in shapes.items()}
    with contextlib.ExitStack() as stack:
        stages = [stack.enter_context(staging.staged(paths[number])) for number in missing]
        writers = [ShardWriter(os.path.join(stage.local, WEIGHTS), declared) for stage in stages]
        for index, (name, size) in enumerate(shapes.items()):
            base = torch.randn(size, generator=_seeded(index, 0)).mul_(0.02)
            for number, writer in zip(missing, writers, strict=True):
                writer.write(name, _perturbed(base.flatten(), _seeded(index, number), 0.002 * bool(number)))
        for stage, writer in zip(stages, writers, strict=True):
            _publish(stage, writer, shape)
    return paths


def _seeded(tensor: int, model: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * tensor + model)


def _perturbed(base: Tensor, generator: torch.Generator, scale: float) -> Iterator[Tensor]:
    for piece in base.split(PIECE):
        noise = torch.randn(len(piece), generator=generator).mul_(scale) if scale else torch.zeros(1)
        yield (piece + noise).bfloat16()


def _publish(stage: Stage, writer: ShardWriter, shape: Shape) -> None:
    """Write the other files of a model, and its record."""
    stage.entries[WEIGHTS] = writer.close()
    stage.tensors |= writer.entries
    shape.config().save_pretrained(stage.local)
    vocabulary = {f"token-{index}": index for index in range(shape.vocabulary)}
    Tokenizer(WordLevel(vocabulary, unk_token="token-0")).save(os.path.join(stage.local, "tokenizer.json"))
    os.makedirs(os.path.join(stage.local, "1_Pooling"))
    with open(os.path.join(stage.local, "1_Pooling", "config.json"), "w", encoding="utf-8") as file:
        json.dump({"word_embedding_dimension": shape.hidden, "pooling_mode_lasttoken": True}, file)
    stage.commit(ModelRecord(name="benchmark", version="v0001", fingerprint="0"))


def linked(models: list[str], count: int) -> list[str]:
    """Extend a list of models to `count` with copies made of hard links."""
    paths = list(models[:count])
    for number in range(len(paths), count):
        paths.append(f"{models[number % len(models)]}-copy-{number}")
        if not os.path.isdir(paths[-1]):
            shutil.copytree(models[number % len(models)], paths[-1], copy_function=os.link)
    return paths


class Memory(threading.Thread):
    """Samples the anonymous memory of a process and all its descendants.

    Attributes:
        processes: All observed processes.
        peaks: Peak of each process in bytes, by PID.
        tree_peak: Peak of the sum.
        workers: PIDs of Ray actors that merge.
    """

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.processes, self.stopped = {pid: psutil.Process(pid)}, threading.Event()
        self.root, self.peaks = self.processes[pid], {pid: 0}
        self.tree_peak, self.workers = 0, set[int]()

    def run(self) -> None:
        """Sample until `stopped` is set."""
        turn = 0
        while not self.stopped.wait(1 / SAMPLES_PER_SECOND):
            if turn % SAMPLES_PER_SCAN == 0:
                self._scan()
            turn += 1
            now = {pid: _anonymous(pid) for pid in self.peaks}
            self.peaks = {pid: max(self.peaks[pid], size) for pid, size in now.items()}
            self.tree_peak = max(self.tree_peak, sum(now.values()))

    def _scan(self) -> None:
        for child in _children(self.root):
            self.processes.setdefault(child.pid, child)
            self.peaks.setdefault(child.pid, 0)
            with contextlib.suppress(psutil.Error):
                if "ray::MergeWorker" in " ".join(child.cmdline()):
                    self.workers.add(child.pid)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _anonymous(pid: int) -> int:
    """Anonymous memory of a process in bytes; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8") as file:
            return next((int(line.split()[1]) << 10 for line in file if line.startswith("RssAnon:")), 0)
    except (FileNotFoundError, ProcessLookupError):
        return 0


def measure(command: list[str], environment: dict[str, str], log: str) -> Run:
    """Run a command, and wait until all its processes have ended.

    Raises:
        RuntimeError: with the end of its output, if it fails.
    """
    with open(log, "wb") as log_file:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdout=log_file, stderr=log_file, env=environment, cwd=ROOT)
        memory = Memory(process.pid)
        memory.start()
        code = process.wait()
        seconds = time.perf_counter() - started
    memory.stopped.set()
    memory.join()
    psutil.wait_procs([p for p in memory.processes.values() if p.pid != process.pid], timeout=30)
    with open(log, encoding="utf-8", errors="replace") as file:
        output = file.read()
    if code:
        raise RuntimeError(f"{command[0]} ended with {code}:\n{output[-3000:]}")
    streaming = re.search(r" files in ([\d.]+) s,", output)
    merging = memory.workers or {process.pid}
    peak = max(memory.peaks[pid] for pid in merging)
    return Run(seconds, float(streaming[1]) if streaming else None, peak, memory.tree_peak)


class Tools:
    """Runs both tools as commands on the same inputs.

    Args:
        scratch: An empty directory for outputs.
    """

    def __init__(self, scratch: str) -> None:
        self.scratch = scratch
        offline = {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
        self.environment = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "PYTHONPATH")}
        self.environment |= offline

    def ours(self, inputs: Inputs, out: str, workers: int = WORKERS) -> Run:
        """Run `boom-ray merge` of this checkout."""
        command = [sys.executable, "-m", "boom_ray.cli", "merge", *inputs.models, "--out", out]
        command += ["--num-workers", str(workers), "--dtype", "bfloat16"]
        command += ["--base-model", inputs.base] if inputs.base else []
        return self._timed(command, self.environment | {"PYTHONPATH": ROOT}, inputs, out)

    def mergekit(self, inputs: Inputs, out: str) -> Run:
        """Run `mergekit-pytorch`, the command that merges files tensor by tensor without an architecture."""
        models = [os.path.join(path, WEIGHTS) for path in inputs.models]
        entries = [{"model": model, "parameters": {"weight": 1.0}} for model in models]
        config: dict[str, Any] = {"merge_method": "multislerp", "models": entries, "dtype": "bfloat16"}
        config |= {"base_model": os.path.join(inputs.base, WEIGHTS)} if inputs.base else {}
        path = os.path.join(self.scratch, "mergekit.yml")
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump(config, file)
        program = os.path.join(os.path.dirname(mergekit_python()), "mergekit-pytorch")
        return self._timed([program, path, out, *MERGEKIT_FLAGS], self.environment, inputs, out)

    def _timed(self, command: list[str], environment: dict[str, str], inputs: Inputs, out: str) -> Run:
        shutil.rmtree(out, ignore_errors=True)
        prepare(inputs)
        return measure(command, environment, os.path.join(self.scratch, "log"))


def mergekit_python() -> str:
    """Path of the Python with mergekit."""
    python = os.environ.get("BOOM_RAY_MERGEKIT_PYTHON")
    if not python:
        raise click.ClickException(
            "BOOM_RAY_MERGEKIT_PYTHON is not set. Set it to a Python with mergekit; tests/run.sh creates one"
        )
    return python


def prepare(inputs: Inputs) -> None:
    """Read the inputs into the page cache, and flush dirty pages."""
    os.sync()
    _in_threads(WORKERS, functools.partial(_read_part, inputs.files, WORKERS))


def measure_floor(inputs: Inputs, scratch: str) -> Floor:
    """Read every input once and write one output, with `WORKERS` threads."""
    prepare(inputs)
    targets = [os.path.join(scratch, f"floor-{part}") for part in range(WORKERS)]
    moments = [time.perf_counter()]
    _in_threads(WORKERS, functools.partial(_read_part, inputs.files, WORKERS))
    moments.append(time.perf_counter())
    _in_threads(WORKERS, lambda part: _write(targets[part], inputs.output_bytes // WORKERS))
    moments.append(time.perf_counter())
    for target in targets:
        with open(target, "rb") as file:
            os.fsync(file.fileno())
    moments.append(time.perf_counter())
    for target in targets:
        os.remove(target)
    return Floor(*(after - before for before, after in itertools.pairwise(moments)))


def _in_threads(count: int, work: Any) -> None:
    with ThreadPoolExecutor(count) as pool:
        list(pool.map(work, range(count)))


def _read_part(files: list[str], parts: int, part: int) -> None:
    """Read the same part of every file sequentially."""
    buffer = memoryview(bytearray(BUFFER))
    for path in files:
        with open(path, "rb", buffering=0) as file:
            size = os.path.getsize(path)
            left = size * (part + 1) // parts - size * part // parts
            file.seek(size * part // parts)
            while left:
                left -= file.readinto(buffer[:left])


def _write(path: str, size: int) -> None:
    buffer = memoryview(bytearray(BUFFER))
    with open(path, "wb", buffering=0) as file:
        for start in range(0, size, BUFFER):
            file.write(buffer[: size - start])


def largest_difference(one: str, other: str) -> float:
    """Largest relative difference of a tensor between two model directories, by Euclidean norm."""
    ours, theirs = _open(one), _open(other)
    assert ours.keys() == theirs.keys(), f"{one} and {other} have different tensors"
    return max(_difference(ours[name].get_tensor(name), theirs[name].get_tensor(name)) for name in ours)


def _open(directory: str) -> dict[str, Any]:
    """Tensor name -> open file that contains it."""
    names = sorted(name for name in os.listdir(directory) if name.endswith(".safetensors"))
    files = [safe_open(os.path.join(directory, name), "pt") for name in names]
    return {name: file for file in files for name in file.keys()}  # noqa: SIM118


def _difference(one: Tensor, other: Tensor) -> float:
    difference = norm = 0.0
    for a, b in zip(one.flatten().split(PIECE), other.flatten().split(PIECE), strict=True):
        difference += float((a.float() - b.float()).square().sum(dtype=torch.float64))
        norm += float(b.float().square().sum(dtype=torch.float64))
    return (difference / norm) ** 0.5


def compare(tools: Tools, inputs: Inputs, toy: Inputs, repeats: int) -> dict[str, Any]:
    """Alternate boom-ray, mergekit, the floor, and the start-up of both tools.

    Returns:
        Medians of the ratios of each round, and the rounds.
    """
    outs = [os.path.join(tools.scratch, name) for name in ("ours", "mergekit")]
    tools.ours(toy, outs[0]), tools.mergekit(toy, outs[1])  # reads the programs into the page cache
    rounds, difference = [], 0.0
    for turn in range(repeats):
        load = os.getloadavg()[0]
        ours, theirs = tools.ours(inputs, outs[0]), tools.mergekit(inputs, outs[1])
        if turn == 0:
            difference = largest_difference(*outs)
        for out in outs:
            shutil.rmtree(out)
        floor = measure_floor(inputs, tools.scratch)
        starts = tools.ours(toy, outs[0]), tools.mergekit(toy, outs[1])
        rounds.append(_round(ours, theirs, floor, starts) | {"load_before": round(load, 2)})
    ratios = [entry["ratios"] for entry in rounds]
    medians = {key: statistics.median(ratio[key] for ratio in ratios) for key in ratios[0]}
    return {"ratios": medians, "largest_difference": difference, "rounds": rounds}


def _round(ours: Run, theirs: Run, floor: Floor, starts: tuple[Run, Run]) -> dict[str, Any]:
    """Seconds, MiB and ratios (boom-ray over the other) of one round."""
    ours_proper, theirs_proper = ours.seconds - starts[0].seconds, theirs.seconds - starts[1].seconds
    transfer = floor.read + floor.write
    ratios = {
        "ours_to_mergekit": ours.seconds / theirs.seconds,
        "ours_to_mergekit_proper": ours_proper / theirs_proper,
        "ours_to_mergekit_memory": ours.peak / theirs.peak,
        "ours_to_mergekit_memory_of_all_processes": ours.tree_peak / theirs.tree_peak,
        "ours_proper_to_floor": ours_proper / transfer,
        "ours_proper_to_floor_with_fsync": ours_proper / (transfer + floor.fsync),
        "ours_streaming_to_floor": _streaming(ours) / transfer,
        "mergekit_proper_to_floor": theirs_proper / transfer,
    }
    seconds = {
        "ours": ours.seconds,
        "ours_start": starts[0].seconds,
        "ours_streaming": _streaming(ours),
        "mergekit": theirs.seconds,
        "mergekit_start": starts[1].seconds,
        "floor_read": floor.read,
        "floor_write": floor.write,
        "floor_fsync": floor.fsync,
    }
    memory = {
        "ours_worker": ours.peak,
        "ours_start_worker": starts[0].peak,
        "ours_all_processes": ours.tree_peak,
        "mergekit": theirs.peak,
        "mergekit_start": starts[1].peak,
    }
    return {
        "seconds": {key: round(value, 3) for key, value in seconds.items()},
        "anonymous_mib": {key: value >> 20 for key, value in memory.items()},
        "ratios": {key: round(value, 4) for key, value in ratios.items()},
    }


def _streaming(run: Run) -> float:
    assert run.streaming is not None, "the merge reports its streaming time"
    return run.streaming


def scale(tools: Tools, sizes: list[Inputs], repeats: int) -> dict[str, Any]:
    """Time the streaming by number of models, bytes and workers.

    Returns:
        Medians of every point; for each number of workers a plane fitted to them over bytes read and written;
        and the speed-up of the most workers over one: at the points, and per byte read.
    """
    out = os.path.join(tools.scratch, "ours")
    streamed: dict[tuple[int, int, int], list[float]] = {}
    memory: dict[tuple[int, int, int], int] = {}
    for _ in range(repeats):
        for inputs in sizes:
            for workers in SCALING_WORKERS:
                run, key = tools.ours(inputs, out, workers), (len(inputs.models), inputs.num_bytes, workers)
                streamed.setdefault(key, []).append(_streaming(run))
                memory[key] = max(memory.get(key, 0), run.peak)
        shutil.rmtree(out)
    seconds = {key: statistics.median(values) for key, values in streamed.items()}
    written = {inputs.num_bytes: inputs.output_bytes for inputs in sizes}
    points = [
        {"models": key[0], "bytes_read": key[1], "bytes_written": written[key[1]], "workers": key[2]}
        | {"seconds": round(value, 3)}
        | {"rounds": [round(entry, 3) for entry in streamed[key]], "worker_anonymous_mib": memory[key] >> 20}
        for key, value in seconds.items()
    ]
    planes = {
        workers: _plane(
            [(read, written[read], took) for (_, read, by), took in seconds.items() if by == workers]
        )
        for workers in SCALING_WORKERS
    }
    first, last = SCALING_WORKERS[0], SCALING_WORKERS[-1]
    faster = [value / seconds[key[0], key[1], last] for key, value in seconds.items() if key[2] == first]
    by_read = planes[first]["seconds_per_gb_read"] / planes[last]["seconds_per_gb_read"]
    speedup = {"median": round(statistics.median(faster), 3), "by_byte_read": round(by_read, 3)}
    return {"points": points, "planes_by_workers": planes, "speedup": speedup}


def _plane(points: list[tuple[int, int, float]]) -> dict[str, float]:
    """Fit a plane to seconds over bytes read and bytes written, by least squares."""
    read, written, seconds = np.array(points).T
    factors = np.stack([read / 1e9, written / 1e9, np.ones(len(points))], axis=1)
    found = np.linalg.lstsq(factors, seconds)[0]
    residual, total = ((seconds - factors @ found) ** 2).sum(), ((seconds - seconds.mean()) ** 2).sum()
    names = ("seconds_per_gb_read", "seconds_per_gb_written", "seconds_at_zero")
    values = {name: round(float(value), 4) for name, value in zip(names, found, strict=True)}
    return values | {"r_squared": round(float(1 - residual / total), 4)}


def machine() -> dict[str, Any]:
    """The hardware that the figures depend on."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
    memory = psutil.virtual_memory().total >> 30
    return {
        "cpu": (names or [platform.machine()])[0],
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": memory,
    }


def versions(with_mergekit: bool) -> dict[str, str]:
    """Versions of the tools and of torch."""
    found = {name: importlib.metadata.version(name) for name in ("boom-ray", "torch", "ray")}
    if with_mergekit:
        code = "from importlib.metadata import version as v; print(v('mergekit'), v('torch'))"
        run = subprocess.run([mergekit_python(), "-c", code], capture_output=True, text=True, check=True)
        found |= dict(zip(("mergekit", "torch of mergekit"), run.stdout.split(), strict=True))
    return {"python": platform.python_version()} | found


def _shape(context: click.Context, parameter: click.Parameter, value: str) -> Shape:
    if value == "tiny":
        return TOY
    if not value.isdigit() or int(value) < 1:
        raise click.BadParameter(f"got {value!r}; allowed: tiny, or a number of layers")
    return Shape(layers=int(value))


def _cases(context: click.Context, parameter: click.Parameter, value: str) -> list[str]:
    cases = value.split(",")
    if not set(cases) <= {"base", "plain"}:
        raise click.BadParameter(f"got {value!r}; allowed: base, plain, or both with a comma")
    return cases


@contextlib.contextmanager
def _directory(keep: str | None) -> Iterator[str]:
    if keep:
        yield os.path.abspath(keep)
        return
    with tempfile.TemporaryDirectory(prefix="merge-benchmark-") as path:
        yield path


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--repeats", type=click.IntRange(min=1), default=3, show_default=True, help="Rounds.")
@click.option("--models", type=click.IntRange(min=2), default=5, show_default=True, help="Models merged.")
@click.option(
    "--scale", "shape", callback=_shape, default="28", show_default=True, metavar="LAYERS|tiny",
    help="Layers of full width, or tiny to test this script.",
)  # fmt: skip
@click.option(
    "--cases",
    callback=_cases,
    default="base,plain",
    show_default=True,
    help="With a base model, or without.",
)
@click.option("--keep", metavar="DIR", help="Keep the inputs there, and reuse existing ones.")
@click.option("--scaling", is_flag=True, help="Time the merge by models, bytes and workers.")
def main(repeats: int, models: int, shape: Shape, cases: list[str], keep: str | None, scaling: bool) -> None:
    """Compare boom-ray's merge with mergekit's and with the floor."""
    with _directory(keep) as root, tempfile.TemporaryDirectory(prefix="out-", dir=_made(root)) as scratch:
        full, toy = make_models(root, shape, models), make_models(root, TOY, models)
        about = {"machine": machine(), "versions": versions(not scaling), "repeats": repeats}
        for case in cases:
            with_base = case == "base"
            toys = Inputs(toy[1:], toy[0] if with_base else None)
            result: dict[str, Any] = {"benchmark": "merge scaling" if scaling else "merge", "case": case}
            if scaling:
                sets = [make_models(root, shape.quarter(), models), full]
                sizes = [
                    Inputs(linked(paths[1:], count), paths[0] if with_base else None)
                    for paths in sets
                    for count in SCALING_MODELS
                ]
                result |= scale(Tools(scratch), sizes, repeats)
            else:
                inputs = Inputs(full[1:], full[0] if with_base else None)
                result |= {"models": models, "layers": shape.layers, "workers": WORKERS}
                result |= {"bytes_read": inputs.num_bytes, "bytes_written": inputs.output_bytes}
                result |= {"mergekit_flags": MERGEKIT_FLAGS}
                result |= compare(Tools(scratch), inputs, toys, repeats)
            click.echo(json.dumps(result | about))


def _made(directory: str) -> str:
    os.makedirs(directory, exist_ok=True)
    return directory


if __name__ == "__main__":
    main()
