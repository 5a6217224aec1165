"""The timeout of collectives. The only file that uses private API of `torch.distributed`."""

import datetime

import torch.distributed as dist
from torch.distributed import distributed_c10d


def set_collective_timeout(seconds: float) -> None:
    """Set the timeout of every process group of this process.

    DeepSpeed creates its own process groups with torch's default of 30 minutes and has no setting for it.
    torch can neither list the groups nor change a timeout through public API.
    """
    for group in distributed_c10d._world.pg_map:
        if group is not None and dist.get_rank(group) >= 0:
            distributed_c10d._set_pg_timeout(datetime.timedelta(seconds=seconds), group)
