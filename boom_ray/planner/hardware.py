"""What processors can do by their makers' data sheets; a plan takes every number as an assumption."""

from dataclasses import dataclass
from math import floor

from boom_ray.errors import BoomError
from boom_ray.planner.assumptions import Assumptions
from boom_ray.recipe import Precision, TrainExecution

GB, TERA = 1e9, 1e12
GPUS_PER_NODE = 8


@dataclass(frozen=True)
class DataSheet:
    """One processor.

    Attributes:
        memory: Bytes.
        flops: Of dense matrix products in bfloat16, a second.
        fp32_flops: The same in float32.
        bandwidth: Of its memory, bytes a second.
        link: To the others of its node, bytes a second in one direction.
        network: Its share of its node's network, bytes a second.
        source: Of these numbers.
    """

    memory: float
    flops: float
    fp32_flops: float
    bandwidth: float
    link: float
    network: float
    source: str


#: Dense rates: the larger ones on data sheets count zeros of sparse matrices. Networks are AWS's nodes'.
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
class Cluster:
    """Processors of one kind, as ranks see them.

    Attributes:
        gpu_type: A key of `DATA_SHEETS`.
        num_gpus: Processors: GPUs, or CPUs.
        num_ranks: Ranks there is room for.
        share: Processors of one rank.
        ranks_per_node: Ranks of one node.
        num_cpus: CPUs beside the GPUs, or all of them.
    """

    gpu_type: str
    num_gpus: int
    num_ranks: int
    share: float
    ranks_per_node: int
    num_cpus: float

    @property
    def on_cpus(self) -> bool:
        """Whether there are no GPUs."""
        return self.gpu_type == "cpu"

    def nodes_of(self, num_ranks: int) -> int:
        """Nodes that so many ranks take."""
        return -(-num_ranks // self.ranks_per_node)


@dataclass(frozen=True)
class Rank:
    """What one rank has; see `DataSheet`.

    Attributes:
        flops: That training reaches.
        encode_flops: That encoding without gradients reaches.
    """

    memory: float
    flops: float
    encode_flops: float
    bandwidth: float
    link: float
    network: float


def sheet_of(gpu_type: str) -> DataSheet:
    """The data sheet of a kind of processor.

    Raises:
        BoomError: if there is none.
    """
    if gpu_type not in DATA_SHEETS:
        raise BoomError(
            f"--gpu-type {gpu_type}: unknown; allowed: {', '.join(DATA_SHEETS)}. For another, take the "
            "nearest and give its numbers: --assume gpu.memory=… --assume gpu.flops=…"
        )
    return DATA_SHEETS[gpu_type]


def cluster(gpu_type: str, num_gpus: int, execution: TrainExecution, assume: Assumptions) -> Cluster:
    """How many ranks of a recipe so many processors have room for.

    Raises:
        BoomError: if the kind is unknown, or not one rank fits.
    """
    sheet_of(gpu_type)
    kind = "CPU" if gpu_type == "cpu" else "GPU"
    share = execution.resources_per_worker.get(kind, 1.0) or 1.0
    num_ranks = floor(num_gpus / share + 1e-9)
    if not num_ranks:
        raise BoomError(f"--gpus {num_gpus}: a rank takes {share:g} {kind}s (train.execution). Give more")
    per_node = assume.take("cluster.gpus_per_node", GPUS_PER_NODE, "", "the usual node")
    beside = execution.resources_per_worker.get("CPU", 1.0) / share
    num_cpus = num_gpus if kind == "CPU" else num_gpus * assume.take(
        "cluster.cpus_per_gpu", beside, "", "train.execution.resources_per_worker"
    )  # fmt: skip
    return Cluster(gpu_type, num_gpus, num_ranks, share, max(1, floor(per_node / share)), num_cpus)


def rank(cluster: Cluster, precision: Precision, assume: Assumptions) -> Rank:
    """What one rank of a cluster has."""
    sheet, share = sheet_of(cluster.gpu_type), cluster.share
    peak = sheet.fp32_flops if precision == "fp32" else sheet.flops
    efficiency = "Llama 3 reached 0.38 to 0.43 (arXiv 2407.21783, table 4); short texts reach less"
    if cluster.on_cpus:
        efficiency = "the data sheet's number is one that is reached"
    flops = assume.take("gpu.flops", peak, "FLOP/s", sheet.source)
    reached = assume.take("gpu.efficiency", 1.0 if cluster.on_cpus else 0.35, "", efficiency)
    forward = assume.take("gpu.encode_efficiency", reached, "", "as in training")
    return Rank(
        memory=share * assume.take("gpu.memory", sheet.memory, "B", sheet.source),
        flops=assume.take("rank.flops", share * flops * reached, "FLOP/s", "gpu.flops x gpu.efficiency"),
        encode_flops=assume.take(
            "rank.encode_flops", share * flops * forward, "FLOP/s", "gpu.flops x gpu.encode_efficiency"
        ),
        bandwidth=assume.take("gpu.bandwidth", sheet.bandwidth, "B/s", sheet.source),
        link=assume.take("gpu.link", sheet.link, "B/s", sheet.source),
        network=assume.take("gpu.network", sheet.network, "B/s", sheet.source),
    )
