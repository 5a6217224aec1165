"""Clusters and ranks: peak rates of processors from their data sheets, each an assumption of the plan."""

from dataclasses import dataclass
from math import floor

from boom_ray.errors import InputError
from boom_ray.planner.assumptions import Assumptions
from boom_ray.recipe import Precision
from boom_ray.recipe.execution import TrainExecution

GB, TERA = 1e9, 1e12
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class DataSheet:
    """One kind of processor.

    Attributes:
        memory: Bytes.
        flops: Dense bfloat16 matrix products, FLOP/s.
        fp32_flops: Dense float32 matrix products, FLOP/s.
        memory_bandwidth: Bytes per second.
        link: Bandwidth to the other processors of its node, bytes per second in one direction.
        network: Its part of its node's network bandwidth, bytes per second.
        source: Where these numbers come from.
    """

    memory: float
    flops: float
    fp32_flops: float
    memory_bandwidth: float
    link: float
    network: float
    source: str


#: Dense rates; the larger ones on data sheets assume structured sparsity. Networks are those of AWS nodes.
DATA_SHEETS = {
    "H200": DataSheet(
        141 * GB, 989 * TERA, 67 * TERA, 4800 * GB, 450 * GB, 50 * GB, "NVIDIA H200; AWS p5en.48xlarge"
    ),
    "H100": DataSheet(
        80 * GB, 989 * TERA, 67 * TERA, 3350 * GB, 450 * GB, 50 * GB, "NVIDIA H100 SXM; AWS p5.48xlarge"
    ),
    "A100-80": DataSheet(
        80 * GB, 312 * TERA, 19.5 * TERA, 2039 * GB, 300 * GB, 6.25 * GB, "NVIDIA A100 SXM; AWS p4de.24xlarge"
    ),
    "A100-40": DataSheet(
        40 * GB, 312 * TERA, 19.5 * TERA, 1555 * GB, 300 * GB, 6.25 * GB, "NVIDIA A100 SXM; AWS p4d.24xlarge"
    ),
    "L40S": DataSheet(
        48 * GB, 362 * TERA, 91.6 * TERA, 864 * GB, 32 * GB, 6.25 * GB, "NVIDIA L40S; AWS g6e.48xlarge"
    ),
    "A10G": DataSheet(
        24 * GB, 70 * TERA, 35 * TERA, 600 * GB, 32 * GB, 1.56 * GB, "NVIDIA A10G; AWS g5.48xlarge"
    ),
    "L4": DataSheet(
        24 * GB, 121 * TERA, 30.3 * TERA, 300 * GB, 32 * GB, 1.56 * GB, "NVIDIA L4; AWS g6.48xlarge"
    ),
    "cpu": DataSheet(
        4 * GB, 50e9, 50e9, 10 * GB, 5 * GB, 1.25 * GB, "one core of a server, a guess: use --calibrate"
    ),
}


@dataclass(frozen=True)
class ClusterSpec:
    """Processors of one kind, divided into ranks.

    Attributes:
        gpu_type: A key of `DATA_SHEETS`.
        num_gpus: Processors: GPUs, or CPUs if `gpu_type` is `cpu`.
        num_ranks: Ranks that fit.
        gpus_per_rank: Processors of one rank.
        ranks_per_node: Ranks of one node.
        num_cpus: CPUs for stages that need no GPU.
    """

    gpu_type: str
    num_gpus: int
    num_ranks: int
    gpus_per_rank: float
    ranks_per_node: int
    num_cpus: float

    @property
    def on_cpus(self) -> bool:
        """Whether the cluster has no GPUs."""
        return self.gpu_type == "cpu"

    @property
    def num_nodes(self) -> int:
        """Nodes of all ranks."""
        return self.nodes_of(self.num_ranks)

    def nodes_of(self, num_ranks: int) -> int:
        """Nodes that `num_ranks` ranks occupy."""
        return -(-num_ranks // self.ranks_per_node)


@dataclass(frozen=True)
class RankSpec:
    """The rates of one rank; units as in `DataSheet`.

    Attributes:
        flops: Achieved in training.
        encode_flops: Achieved in encoding without gradients.
        launch: Seconds in which the host launches one operation of torch.
        collate: Seconds in which the host assembles a batch, per text of the global batch.
        tokenize: Bytes of text that it tokenizes per second.
    """

    memory: float
    flops: float
    encode_flops: float
    memory_bandwidth: float
    link: float
    network: float
    launch: float
    collate: float
    tokenize: float


def sheet_of(gpu_type: str) -> DataSheet:
    """The data sheet of a kind of processor.

    Raises:
        InputError: if the kind is unknown.
    """
    if gpu_type not in DATA_SHEETS:
        raise InputError(
            f"gpu_type {gpu_type!r}: unknown; allowed: {', '.join(DATA_SHEETS)}. For another, choose the "
            "nearest and override its assumptions gpu.memory, gpu.flops, gpu.bandwidth"
        )
    return DATA_SHEETS[gpu_type]


def cluster(gpu_type: str, num_gpus: int, execution: TrainExecution, assume: Assumptions) -> ClusterSpec:
    """Divide `num_gpus` processors into ranks with the resources of a recipe.

    Raises:
        InputError: if the kind is unknown, or not one rank fits.
    """
    sheet_of(gpu_type)
    kind = "CPU" if gpu_type == "cpu" else "GPU"
    per_rank = execution.resources_per_worker.get(kind, 1.0) or 1.0
    # 0.3 / 0.1 is 2.999…: without the addend the floor would lose a rank to rounding.
    num_ranks = floor(num_gpus / per_rank + 1e-9)
    if not num_ranks:
        raise InputError(
            f"num_gpus {num_gpus}: one rank takes {per_rank:g} {kind}s "
            "(train.execution.resources_per_worker). Plan for more"
        )
    per_node = assume.take("cluster.gpus_per_node", GPUS_PER_NODE, "", "the usual node")
    cpus_per_gpu = execution.resources_per_worker.get("CPU", 1.0) / per_rank
    source = "train.execution.resources_per_worker"
    num_cpus: float = num_gpus
    if kind == "GPU":
        num_cpus = num_gpus * assume.take("cluster.cpus_per_gpu", cpus_per_gpu, "", source)
    return ClusterSpec(gpu_type, num_gpus, num_ranks, per_rank, max(1, floor(per_node / per_rank)), num_cpus)


def rank(cluster: ClusterSpec, precision: Precision, assume: Assumptions) -> RankSpec:
    """The rates of one rank of a cluster."""
    sheet, per_rank = sheet_of(cluster.gpu_type), cluster.gpus_per_rank
    peak = sheet.fp32_flops if precision == "fp32" else sheet.flops
    source = "Llama 3 reached 0.38 to 0.43 (arXiv 2407.21783, table 4); short texts reach less"
    if cluster.on_cpus:
        source = "the data sheet's rate is an achieved one"
    flops = assume.take("gpu.flops", peak, "FLOP/s", sheet.source)
    efficiency = assume.take("gpu.efficiency", 1.0 if cluster.on_cpus else 0.35, "", source)
    encode_efficiency = assume.take("gpu.encode_efficiency", efficiency, "", "as in training")
    return RankSpec(
        memory=per_rank * assume.take("gpu.memory", sheet.memory, "B", sheet.source),
        flops=assume.take(
            "rank.flops", per_rank * flops * efficiency, "FLOP/s", "gpu.flops x gpu.efficiency"
        ),
        encode_flops=assume.take(
            "rank.encode_flops",
            per_rank * flops * encode_efficiency,
            "FLOP/s",
            "gpu.flops x gpu.encode_efficiency",
        ),
        memory_bandwidth=assume.take("gpu.bandwidth", sheet.memory_bandwidth, "B/s", sheet.source),
        link=assume.take("gpu.link", sheet.link, "B/s", sheet.source),
        network=assume.take("gpu.network", sheet.network, "B/s", sheet.source),
        launch=assume.take("host.launch_seconds", 1e-5, "s", "of one operation of torch, a guess"),
        collate=assume.take("host.collate_seconds", 1e-5, "s", "of one text of a batch, a core of a server"),
        tokenize=assume.take("host.tokenize_bytes_per_second", 2e6, "B/s", "of a core of a server"),
    )
