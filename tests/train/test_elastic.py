"""The capacity that bags with a range of ranks wait for; `tests/chaos/test_nodes.py` changes it meanwhile."""

import pytest

from boom_ray.errors import ClusterError
from boom_ray.recipe.execution import Elastic, TrainExecution
from boom_ray.train.capacity import await_capacity

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_the_smallest_number_of_ranks_is_required_and_the_largest_is_not():
    rank = {"resources_per_worker": {"CPU": 0.5}, "start_timeout_s": 0.5}
    assert await_capacity(TrainExecution(num_workers=Elastic(min=2, max=9), **rank)) == 4
    with pytest.raises(ClusterError, match=r"required are 5 workers .*enough for 4.*train\.execution"):
        await_capacity(TrainExecution(num_workers=Elastic(min=5, max=9), **rank))
