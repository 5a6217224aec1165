"""One embedding run: everything is checked first, then encoded as a stream, and the record is written last.

The partitions of the output are a function of the input and the options. Each is stored in one step under its
own name. A run that was killed is finished by the next run with the same input: it keeps the partitions that
are stored, and needs no other bookkeeping. Ray Data's own checkpoints keep the ids of finished rows in files
next to the output, which could disagree with it.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
from ray.data import DataContext
from ray.exceptions import RayError, RayTaskError

from boom_ray import artifacts, storage
from boom_ray.artifacts import EmbeddingsRecord, FileEntry, Parent, staging
from boom_ray.artifacts.contents import EmbeddingsConfig, EmbeddingsMetrics
from boom_ray.artifacts.staging import Stage
from boom_ray.embed import int8_scales, probe
from boom_ray.embed.earlier_rows import read_earlier
from boom_ray.embed.embed_options import EmbedOptions, Precision
from boom_ray.embed.embed_plan import EmbedPlan, EncoderPool
from boom_ray.embed.encode import encode_partitions, write_empty
from boom_ray.embed.metrics import STAGES, EmbedMetrics
from boom_ray.embed.partition import Partition, PartitionMetadata
from boom_ray.embed.probe import ComputeSettings
from boom_ray.embed.survey import Survey, survey
from boom_ray.embed.text_source import open_source
from boom_ray.embed.tokens import TokenCheck
from boom_ray.embed.vectors import Reduction, Scales
from boom_ray.errors import BoomError, ClusterError, ConflictError, NotFoundError, StorageError, first_line
from boom_ray.model import directory
from boom_ray.model.spec import EncoderSpec
from boom_ray.runtime import capacity, demand, devices
from boom_ray.runtime.cluster import result_of
from boom_ray.runtime.progress import Progress

logger = logging.getLogger(__name__)
MIN_PROBED_ROWS = 1024  # a smaller run is over before a probe is
BLOCK_BYTES = 1 << 16  # a partition is one row and larger, so that it is a block of its own
SURVEYOR = {"CPU": 1.0}
REMEDY = "Choose another device (--device), add nodes, or wait longer (--start-timeout)"


@dataclass(frozen=True)
class _Output:
    """The partitions of an output.

    Attributes:
        partitions: All of them.
        written: Those that this run wrote, with their times.
        precision: Precision they were computed in.
        scales: Ranges of the dimensions, for `int8` and `uint8`.
    """

    partitions: list[Partition]
    written: list[Partition]
    precision: Precision
    scales: Scales | None

    @property
    def rows(self) -> int:
        return sum(partition.texts for partition in self.partitions)

    @property
    def tokens(self) -> int:
        return sum(partition.tokens for partition in self.partitions)

    def work(self) -> EmbeddingsMetrics | None:
        """Seconds per stage over all processes; `span`, first text to last file; `padding`, a fraction."""
        if not self.written:
            return None
        total = {stage: sum(getattr(part, stage) for part in self.written) for stage in STAGES}
        span = max(part.ended for part in self.written) - min(part.began for part in self.written)
        padded = sum(part.padded for part in self.written)
        padding = 1 - sum(part.tokens for part in self.written) / padded
        values = {**total, "span": span, "padding": padding}
        return EmbeddingsMetrics(**{key: round(value, 4) for key, value in values.items()})


def embed(model: str, source: str, target: str, options: EmbedOptions | None = None) -> EmbeddingsRecord:
    """Embed every text of a source into parquet.

    The output has the columns `id` (as in the source), `text_xxh3` (uint64 hash of the text), the copied
    columns, `chunk` (with one vector per chunk) and `embedding` (fixed_size_list). The order of rows is
    arbitrary.

    Args:
        model: URI of a model directory.
        source: URI of a file, or of a directory of files of one format: parquet, jsonl, csv or text.
        target: URI of the artifact to make.

    Returns:
        The record of the embeddings.

    Raises:
        ConflictError: if the target exists, an output of `since` cannot be extended, or the source changes
            during the run.
        NotFoundError: if the source, a column or the prompt does not exist.
        InputError: if a row or an option is invalid, or the model cannot be loaded.
        StorageError: if reading or writing fails. The partitions stored until then are kept for the next run,
            invisible to readers.
        ClusterError: if Ray loses processes more often than it restarts them, has no capacity for an encoder
            within `start_timeout_s`, or its nodes lack the device.
    """
    options = options or EmbedOptions()
    _prepare_ray_data()
    staging.refuse_existing(target)
    started = time.monotonic()
    parent, spec = directory.identify(model), directory.read_spec(storage.local_directory(model))
    settings = _vector_settings(model, spec, options)
    reduction = Reduction.of(
        directory.dimension_of(storage.local_directory(model)), options.dimensions, options.dtype
    )
    settings |= {"dimensions": reduction.dimensions, "dtype": options.dtype}
    opened, device = open_source(source, options), devices.resolve(options.device)
    demand.refuse_impossible(_encoder_resources(device), 1, REMEDY)
    _await_capacity(SURVEYOR, options)
    earlier = read_earlier(options.since, parent.digest, settings, opened.id_type)
    with _explained(f"{source}: cannot be read"):
        seen = survey(opened, earlier, TokenCheck.of(model, settings["prompt"]))
    identity = artifacts.fingerprint([parent.digest, settings, seen.content, options.columns, options.since,
                                     options.precision])  # fmt: skip
    plan = EmbedPlan(
        seen.source, model, spec, settings["prompt"], seen.rows, ray.put(earlier.keys), target, reduction
    )
    with staging.resumable(target, identity) as stage:
        output = _encode(replace(plan, target=stage.uri), stage, seen, device)
        seconds = time.monotonic() - started
        return stage.commit(_record(stage, identity, parent, settings, plan, seen, output, seconds))


def _record(
    stage: Stage,
    identity: str,
    parent: Parent,
    settings: dict[str, Any],
    plan: EmbedPlan,
    seen: Survey,
    output: _Output,
    seconds: float,
) -> EmbeddingsRecord:
    """The record of an output."""
    scales, options = output.scales, plan.source.options
    return EmbeddingsRecord(
        name=storage.name_of(stage.target),
        version=parent.version,
        fingerprint=identity,
        config=EmbeddingsConfig(
            model=parent.digest,
            **settings,
            **(scales.to_lists() if scales else {}),
            rows=output.rows,
            tokens=output.tokens,
            precision=output.precision,
            seconds=round(seconds, 1),
            unchanged=seen.unchanged,
            deleted=seen.deleted,
            since=list(options.since),
            source=storage.without_credentials(plan.source.uri),
            text_column=options.text_column,
            id_column=plan.source.id_column,
        ),
        parents=[parent],
        metrics=output.work(),
    )


def _encoder_resources(device: str) -> dict[str, float]:
    """Ray resources that an encoder needs at most."""
    return {"CPU": 1.0, "GPU": 1.0} if device == "cuda" else {"CPU": 1.0}


def _await_capacity(process: dict[str, float], options: EmbedOptions) -> None:
    """Wait for a first process: Ray Data starts no work without capacity, and reports no wait."""
    demand.await_capacity(process, timeout_s=options.start_timeout_s, remedy=REMEDY)


def _prepare_ray_data() -> None:
    """Let exceptions arrive as they were raised, and keep Ray Data's reports of them to its own log file."""
    context = DataContext.get_current()
    context.raise_original_map_exception = True
    context.enable_progress_bars = False
    context.target_max_block_size = BLOCK_BYTES
    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.CRITICAL)


def _vector_settings(model: str, spec: EncoderSpec, options: EmbedOptions) -> dict[str, Any]:
    """The options on which the vectors depend, but for their length and type."""
    name, prompts = options.prompt_name, spec.prompts
    if name is not None and name not in prompts:
        raise NotFoundError(f"{model}: no prompt {name!r}; it has: {', '.join(sorted(prompts)) or 'none'}")
    prompt = options.prompt
    if prompt is None:
        prompt = spec.stored_prompt if name is None else prompts[name]
    chunks = {"chunk": options.chunk, "overlap": options.overlap, "chunk_output": options.chunk_output}
    return {"prompt_name": name, "prompt": prompt, **(chunks if options.chunk else {"chunk": None})}


def _encode(plan: EmbedPlan, stage: Stage, seen: Survey, device: str) -> _Output:
    """Write the missing partitions."""
    total, written = sum(seen.rows), list[Partition]()
    with _explained(f"{plan.source.uri}: cannot be embedded into {stage.target}"):
        done, metadata = _stored_partitions(stage)
        num_done = sum(partition.texts for partition in done.values())
        if num_done:
            logger.info("embed: %d of %d rows are already stored", num_done, total)
        options = plan.source.options
        if num_done < total:
            _await_capacity(_encoder_resources(device), options)
        compute = metadata.compute if metadata else _compute_settings(plan, total, device)
        pool = EncoderPool.of(options.num_workers, -(-total // plan.partition_rows), compute, device)
        scales = int8_scales.calibrated(plan, pool, metadata.scales if metadata else None)
        plan = replace(plan, compute=compute, reduction=replace(plan.reduction, scales=scales))
        if num_done < total:
            metrics = EmbedMetrics(storage.name_of(stage.target))
            with closing(encode_partitions(plan, pool, set(done))) as stream:
                written = list(_reported(stream, num_done, total, metrics))
        elif not total:
            written = [write_empty(plan)]
    # By file, so that a partition counts once even if Ray Data yields it twice.
    partitions = done | {partition.file: partition for partition in written}
    stage.entries |= {
        name: FileEntry(size=one.size, xxh3_128=one.xxh3_128) for name, one in partitions.items()
    }
    output = _Output(list(partitions.values()), written if total else [], compute.precision, scales)
    if output.rows != total:
        raise ConflictError(
            f"{stage.target}: {output.rows} rows were written, {total} read before. Did the source change?"
            " Run the command again"
        )
    return output


def _stored_partitions(stage: Stage) -> tuple[dict[str, Partition], PartitionMetadata | None]:
    """The partitions that an earlier run stored, by file, and the metadata of the first."""
    names = sorted(name for name in storage.list_files(stage.uri) if name.startswith("part-"))
    found = {name: _stored_partition(storage.join(stage.uri, name)) for name in names}
    first = found[names[0]][1] if names else None
    return {name: partition for name, (partition, _) in found.items()}, first


def _stored_partition(uri: str) -> tuple[Partition, PartitionMetadata]:
    hashed = artifacts.hash_file(uri)
    with storage.open_input(uri) as file:
        stored = PartitionMetadata.from_arrow(pq.read_metadata(file).metadata)
    partition = Partition(
        storage.name_of(uri), stored.texts, stored.tokens, size=hashed.size, xxh3_128=hashed.xxh3_128
    )
    return partition, stored


def _reported(
    partitions: Iterator[Partition], done: int, total: int, metrics: EmbedMetrics
) -> Iterator[Partition]:
    """Pass partitions on as they are stored, and report rows, pace and remaining time."""
    started, rows, tokens = time.monotonic(), 0, 0
    with Progress() as progress:
        for partition in partitions:
            rows, tokens = rows + partition.texts, tokens + partition.tokens
            seconds = time.monotonic() - started
            left = (total - done - rows) * seconds / rows
            note = f"rows  {rows / seconds:,.0f} rows/s  {tokens / seconds:,.0f} tokens/s  {left:,.0f} s left"
            progress.update("embed", done + rows, total, note)
            metrics.stored(partition, (done + rows) / total)
            yield partition


def _compute_settings(plan: EmbedPlan, total: int, device: str) -> ComputeSettings:
    """Precision and threads: from the options, or for a long run on CPUs from a probe."""
    options, cpus = plan.source.options, max(1, capacity.most_cpus())
    if device == "cuda":
        return ComputeSettings(options.precision or "bfloat16")
    if (options.precision and options.num_workers) or total < MIN_PROBED_ROWS:
        return ComputeSettings(options.precision or "float32")
    task = ray.remote(num_cpus=min(1, cpus))(_probe)
    settings = result_of(task.remote(plan, cpus))
    return replace(settings, precision=options.precision or settings.precision)


def _probe(plan: EmbedPlan, cpus: int) -> ComputeSettings:
    texts = [plan.prompt + text for text in plan.first_texts(probe.NUM_TEXTS)]
    return probe.measure(plan.model, texts, cpus)


@contextmanager
def _explained(doing: str) -> Iterator[None]:
    """Turn an exception of Ray Data into one sentence, unless it is a defect of boom-ray."""
    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, BoomError):
            raise type(error.cause)(first_line(error.cause)) from error
        if isinstance(error.cause, OSError | pa.ArrowException):
            raise StorageError(f"{doing}: {first_line(error.cause)}") from error
        raise
    except (OSError, pa.ArrowException) as error:
        raise StorageError(f"{doing}: {first_line(error)}") from error
    except RayError as error:
        raise ClusterError(f"{doing}: a worker was lost: {first_line(error)}") from error
