"""A merge of adapters whose result is an adapter: its layers, its rank, and why it may be impossible."""

from boom_ray.artifacts.tensors import ELEMENT_BYTES
from boom_ray.errors import InputError
from boom_ray.merge.merge_job import MergeJob
from boom_ray.merge.shards import Shard
from boom_ray.model.adapter import PREFIX, WEIGHTS
from boom_ray.model.tensor_names import HEAD, plain_names


def plan_adapter(job: MergeJob) -> tuple[dict[str, int], list[Shard]]:
    """Bytes of each tensor of the adapter, and its one file.

    Raises:
        InputError: if an input is more than an adapter of the base model.
    """
    for model in job.inputs:
        if not model.adapter:
            raise InputError(
                f"{model.uri}: is not an adapter, but adapter_rank is set. Leave adapter_rank out, or merge "
                "adapters only"
            )
        changed = [
            name for name, place in model.places.items() if job.base and place != job.base.places[name]
        ]
        if changed:
            raise InputError(
                f"{model.uri}: its {changed[0]} is not that of {job.base and job.base.uri}. Merge adapters "
                "with the base model that they name"
            )
    declared = adapter_tensors(job)
    sizes = {
        name: rows * columns * ELEMENT_BYTES[job.dtype] for name, (_, (rows, columns)) in declared.items()
    }
    return sizes, [Shard(WEIGHTS, list(sizes))]


def adapted_layers(job: MergeJob) -> dict[str, str]:
    """The layers of the adapter: name of a tensor -> name of its layer, as peft finds it in the encoder."""
    places = job.inputs[0].places
    plain = dict(zip(places, plain_names(places), strict=True))
    return {
        name: plain[name].removesuffix(".weight")
        for name in places
        if job.is_low_rank(name) and not HEAD.match(plain[name])
    }


def adapter_rank(job: MergeJob) -> int:
    """The rank of all layers: that of the settings, or the largest sum of ranks if that is less."""
    layers = adapted_layers(job)
    ranks = [sum(m.adapter[name].a.shape[0] for m in job.inputs if name in m.adapter) for name in layers]
    return min(job.settings.adapter_rank or 0, max(ranks))


def adapter_tensors(job: MergeJob) -> dict[str, tuple[str, tuple[int, int]]]:
    """Dtype and shape of the factors, as peft names them: both of one layer after those of another."""
    rank, declared = adapter_rank(job), {}
    for name, layer in adapted_layers(job).items():
        num_out, num_in = job.inputs[0].places[name].shape
        if is_transposed(job, name):
            num_out, num_in = num_in, num_out
        declared[f"{PREFIX}{layer}.lora_A.weight"] = job.dtype, (rank, num_in)
        declared[f"{PREFIX}{layer}.lora_B.weight"] = job.dtype, (num_out, rank)
    return declared


def is_transposed(job: MergeJob, name: str) -> bool:
    """Whether a layer stores [in, out], see `boom_ray.model.adapter.LowRank`."""
    return any(model.adapter[name].transposed for model in job.inputs if name in model.adapter)
