"""One embedding run: everything is checked first, then encoded as a stream, and the record comes last.

The partitions of the output are a function of the input and of what was asked, and each is stored in one
step under a name of its own. A run that was killed is finished by the next with the same input: partitions
that are there are kept, which needs no other bookkeeping. Ray Data's own checkpoints remember ids in files
beside the output; here nothing is remembered that could disagree with it.
"""

import json
import logging
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext
from ray.exceptions import RayError, RayTaskError

from boom_ray import artifacts, storage
from boom_ray.artifacts import EmbeddingsRecord, FileEntry, staging
from boom_ray.artifacts.contents import EmbeddingsConfig, EmbeddingsMetrics
from boom_ray.artifacts.staging import Stage
from boom_ray.embed import probe
from boom_ray.embed.encode import PartitionEncoder, Plan, Pool, encoded
from boom_ray.embed.metrics import EmbedMetrics
from boom_ray.embed.options import Options
from boom_ray.embed.probe import Compute
from boom_ray.embed.source import open_source
from boom_ray.embed.survey import Survey, read_known, survey
from boom_ray.embed.vectors import Reduction
from boom_ray.errors import BoomError
from boom_ray.model import directory
from boom_ray.runtime.cluster import result_of
from boom_ray.runtime.console import console
from boom_ray.runtime.progress import Progress

GONE, CALIBRATION = "gone.json", "calibration.json"
CALIBRATION_ROWS = 512
PROBED_ROWS = 1024  # below, a run is over before a probe is
BLOCK_BYTES = 1 << 16  # a partition is a row and larger than that, so it is a block of its own


def embed(model: str, source: str, target: str, options: Options | None = None) -> EmbeddingsRecord:
    """Embed every text of a source into parquet.

    The result has the columns `id` (as in the source), `text_xxh3` (a hash of the text), those carried along,
    `chunk` (where there is one vector for each piece) and `embedding` (fixed_size_list), in no order that
    means anything.

    Args:
        model: URI of a model directory.
        source: URI of a file, or of a directory of files of one format: parquet, jsonl, csv or text.
        target: URI of the artifact to make.

    Returns:
        The record of the embeddings.

    Raises:
        BoomError: if the target is taken, or the source, a column, the prompt or a text is not as asked, all
            before any model is loaded; or if loading the model, reading or writing fails. What was written
            until then is kept, invisible, for the next run.
    """
    options = options or Options()
    _prepare_ray_data()
    staging.refuse_existing(target)
    started = time.monotonic()
    parent, spec = directory.identify(model), directory.read_spec(storage.local_directory(model))
    asked = _asked(model, spec.prompts, options)
    reduction = Reduction.of(
        directory.dimension_of(storage.local_directory(model)), options.dimensions, options.dtype
    )
    asked |= {"dimensions": reduction.dimensions, "dtype": options.dtype}
    opened = open_source(source, options)
    known = read_known(options.since, parent.digest, asked)
    with _explained(f"{source}: cannot be read"):
        seen = survey(opened, known)
    identity = artifacts.fingerprint([parent.digest, asked, seen.content, options.columns, options.since,
                                     options.precision])  # fmt: skip
    plan = Plan(opened, model, spec, asked["prompt"], seen.rows, ray.put(known.keys), target, reduction)
    with staging.resumable(target, identity) as stage:
        made, spent = _encode(replace(plan, target=stage.uri), stage, seen)
        record = EmbeddingsRecord(
            name=storage.name_of(target),
            version=parent.version,
            fingerprint=identity,
            config=EmbeddingsConfig(
                model=parent.digest,
                **asked,
                **_scales(stage),
                **made,
                seconds=round(time.monotonic() - started, 1),
                unchanged=seen.unchanged,
                gone=len(seen.gone),
                since=list(options.since),
                source=re.sub("//[^/]*@", "//", source),  # credentials can be part of a URI
                text_column=options.text_column,
                id_column=options.id_column,
            ),
            parents=[parent],
            metrics=EmbeddingsMetrics(**spent) if spent else None,
        )
        return stage.commit(record)


def _prepare_ray_data() -> None:
    """Let errors arrive as they were raised; what Ray Data says of them stays in its own log file."""
    context = DataContext.get_current()
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def _asked(model: str, prompts: dict[str, str], options: Options) -> dict[str, Any]:
    """What of the options decides the vectors, besides their length and type."""
    name = options.prompt_name
    if name is not None and name not in prompts:
        raise BoomError(f"{model}: no prompt {name!r}; it has: {', '.join(sorted(prompts)) or 'none'}")
    prompt = options.prompt or ("" if name is None else prompts[name])
    cutting = {"chunk": options.chunk, "overlap": options.overlap, "chunk_output": options.chunk_output}
    return {"prompt_name": name, "prompt": prompt, **(cutting if options.chunk else {"chunk": None})}


def _encode(plan: Plan, stage: Stage, seen: Survey) -> tuple[dict[str, Any], dict[str, float]]:
    """Write what is missing; returns facts of the whole output, and where this run's time went."""
    stored = {name for name in storage.list_files(stage.uri) if name.startswith("part-")}
    total, written = sum(seen.rows), list[dict[str, Any]]()
    with _explained(f"{plan.source.uri}: cannot be embedded into {stage.target}"):
        done = {name: _entry(stage, name) for name in sorted(stored)}
        texts = sum(entry["texts"] for entry in done.values())
        if texts:
            console.print(f"embed: {texts} of {total} rows are there already")
        compute = _compute(plan, stage, total)
        if texts < total:
            pool = Pool.of(plan.source.options.num_workers, -(-total // plan.partition_rows), compute)
            plan = replace(plan, reduction=_calibrated(plan, pool, stage))
            metrics = EmbedMetrics(storage.name_of(stage.target))
            for entry in _reported(iter(encoded(plan, pool, stored).iter_rows()), texts, total, metrics):
                done[entry["file"]] = entry
                written.append(entry)
    if seen.gone:
        storage.write_bytes(storage.join(stage.local, GONE), json.dumps(seen.gone).encode())
    stage.entries |= {
        name: FileEntry(size=entry["size"], xxh3_128=entry["xxh3_128"]) for name, entry in done.items()
    }
    texts = sum(entry["texts"] for entry in done.values())
    if texts != total:
        raise BoomError(
            f"{stage.target}: {texts} rows were written, {total} read before. Did the source change?"
            " Run the command again"
        )
    tokens = sum(entry["tokens"] for entry in done.values())
    return {"rows": texts, "tokens": tokens, "precision": compute.precision}, _spent(written)


def _spent(entries: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds in each stage, summed over processes, and from the first text to the last stored; padding."""
    if not entries:
        return {}
    total = {key: sum(entry[key] for entry in entries) for key in ("read", "tokenize", "encode", "write")}
    span = max(entry["ended"] for entry in entries) - min(entry["began"] for entry in entries)
    padding = 1 - sum(entry["tokens"] for entry in entries) / sum(entry["padded"] for entry in entries)
    return {key: round(value, 4) for key, value in {**total, "span": span, "padding": padding}.items()}


def _entry(stage: Stage, name: str) -> dict[str, Any]:
    """What a partition that an earlier run stored says of itself."""
    uri = storage.join(stage.uri, name)
    hashed = artifacts.hash_file(uri)
    with storage.open_input(uri) as file:
        said = pq.read_metadata(file).metadata or {}
    counts = {key: int(said[key.encode()]) for key in ("tokens", "texts")}
    return {"file": name, "size": hashed.size, "xxh3_128": hashed.xxh3_128, **counts}


def _reported(
    entries: Iterator[dict[str, Any]], done: int, total: int, metrics: EmbedMetrics
) -> Iterator[dict[str, Any]]:
    """Pass entries on as partitions are stored, and show rows, pace and the time left."""
    started, rows, tokens = time.monotonic(), 0, 0
    with Progress() as progress:
        for entry in entries:
            rows, tokens = rows + entry["texts"], tokens + entry["tokens"]
            seconds = time.monotonic() - started
            left = (total - done - rows) * seconds / rows
            note = f"rows  {rows / seconds:,.0f} rows/s  {tokens / seconds:,.0f} tokens/s  {left:,.0f} s left"
            progress.update("embed", done + rows, total, note)
            metrics.stored(entry, (done + rows) / total)
            yield entry


def _calibrated(plan: Plan, pool: Pool, stage: Stage) -> Reduction:
    """The reduction with the scales of `int8`: of this output, of the one it adds to, or measured."""
    if plan.reduction.dtype != "int8":
        return plan.reduction
    place = storage.join(stage.uri, CALIBRATION)
    if plan.source.options.since:
        config = artifacts.read(plan.source.options.since[0], EmbeddingsRecord).config
        scales = {"low": config.low, "high": config.high}
    elif storage.is_file(place):
        scales = json.loads(storage.read_bytes(place))
    else:
        task = ray.remote(num_cpus=pool.num_cpus, num_gpus=pool.num_gpus)(measure_scales)
        scales = result_of(task.remote(plan, pool))
    storage.write_bytes(place, json.dumps(scales).encode())
    low, high = (np.array(scales[key], dtype=np.float32) for key in ("low", "high"))
    return replace(plan.reduction, low=low, high=high)


def measure_scales(plan: Plan, pool: Pool) -> dict[str, list[float]]:
    """The range of each number in the embeddings of the first texts."""
    texts = first_texts(plan, CALIBRATION_ROWS)
    vectors = PartitionEncoder(plan, pool).encoder.encode(texts, plan.prompt)
    fitted = plan.reduction.calibrated(vectors)
    assert fitted.low is not None and fitted.high is not None
    return {"low": fitted.low.tolist(), "high": fitted.high.tolist()}


def first_texts(plan: Plan, count: int) -> list[str]:
    """Texts of the first rows that are embedded."""
    texts: list[str] = []
    for number in range(len(plan.rows)):
        for _, table in plan.wanted(number):
            texts += table["text"].to_pylist()
            if len(texts) >= count:
                return texts[:count]
    return texts


def _compute(plan: Plan, stage: Stage, total: int) -> Compute:
    """Precision and threads: as asked, as a killed run had them, or as a probe finds them for a long run."""
    asked, resources = plan.source.options, ray.cluster_resources()
    if resources.get("GPU"):
        return Compute(asked.precision or "bfloat16")
    if (asked.precision and asked.num_workers) or total < PROBED_ROWS:
        return Compute(asked.precision or "float32")
    compute = probe.stored(stage.uri)
    if compute is None:
        cpus = max(1, int(resources.get("CPU", 1)))
        task = ray.remote(num_cpus=min(1, cpus))(_probed)
        compute = result_of(task.remote(plan, cpus))
        probe.store(stage.uri, compute)
    return replace(compute, precision=asked.precision or compute.precision)


def _probed(plan: Plan, cpus: int) -> Compute:
    texts = [plan.prompt + text for text in first_texts(plan, probe.NUM_TEXTS)]
    return probe.measure(plan.model, texts, cpus)


def _scales(stage: Stage) -> dict[str, list[float]]:
    """The scales the output was stored with, for its record."""
    place = storage.join(stage.uri, CALIBRATION)
    return json.loads(storage.read_bytes(place)) if storage.is_file(place) else {}


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn what Ray Data raises into one sentence, unless it is a fault of the program."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BoomError):
            raise BoomError(_first_line(error.cause)) from error
        if isinstance(error.cause, OSError | pa.ArrowException):
            raise BoomError(f"{doing}: {_first_line(error.cause)}") from error
        raise
    except (OSError, pa.ArrowException) as error:
        raise BoomError(f"{doing}: {_first_line(error)}") from error
    except RayError as error:
        raise BoomError(f"{doing}: a worker was lost: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """What was raised, without the advice on retries that Ray Data appends."""
    return str(error).splitlines()[0]
