"""The file of a merged adapter: the factors of each layer, reduced to a bounded rank."""

from collections.abc import Callable

from boom_ray.merge.as_adapter import adapted_layers, adapter_rank, adapter_tensors, is_transposed
from boom_ray.merge.low_rank import truncate
from boom_ray.merge.merge_job import MergeJob, WrittenShard
from boom_ray.merge.shard_writer import ShardWriter
from boom_ray.merge.shards import Shard
from boom_ray.merge.stream import TensorMerger
from boom_ray.merge.tensor_reader import TORCH_DTYPES
from boom_ray.model.adapter import PREFIX
from boom_ray.storage import join


def write_adapter(job: MergeJob, shard: Shard, report: Callable[[int], object]) -> WrittenShard:
    """Write the file of an adapter, whose scale is 1; see `merge_shard`.

    Raises:
        StorageError: if a factor is damaged.
        InputError: if one has NaN or Inf, or directions cancel.
    """
    rank, dtype, written, truncation = adapter_rank(job), TORCH_DTYPES[job.dtype], 0, {}
    with TensorMerger(job) as merger:
        writer = ShardWriter(join(job.target, shard.file), {**adapter_tensors(job)})
        for name, layer in adapted_layers(job).items():
            _, b, a = merger.combined_factors(name)
            found = truncate(b, a, rank)
            sides = (found.b.T, found.a.T) if is_transposed(job, name) else (found.a, found.b)
            for side, factor in zip("AB", sides, strict=True):
                writer.write(f"{PREFIX}{layer}.lora_{side}.weight", [factor.to(dtype).flatten()])
                written += factor.numel() * dtype.itemsize
            truncation[name] = found.squared_norm, found.squared_error
            report(written)
        return WrittenShard(shard.file, writer.close(), writer.entries, merger.grams, set(), truncation)
