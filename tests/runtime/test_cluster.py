"""What a driver is told of processes that die."""

import os
import signal

import pytest
import ray

from boom_ray.errors import BoomError
from boom_ray.runtime.cluster import ProcessLost, result_of
from boom_ray.train.bag_trainer import reasons

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_process_that_is_lost_is_a_message_and_no_traceback():
    @ray.remote(num_cpus=0, max_retries=0)
    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(ProcessLost, match=r"a process of the cluster was lost: .*Run the command again"):
        result_of(dies.remote())


def test_of_an_environment_that_cannot_be_set_up_the_cause_is_told():
    @ray.remote(num_cpus=0, runtime_env={"working_dir": "file:///nowhere/code.zip"})
    def never_runs() -> None: ...

    with pytest.raises(ProcessLost, match=r"nowhere/code\.zip"):
        result_of(never_runs.remote())


def test_what_a_user_can_put_right_arrives_as_it_was_raised():
    @ray.remote(num_cpus=0)
    def refuses() -> None:
        raise BoomError("bag-1: has no rows")

    with pytest.raises(BoomError, match=r"^bag-1: has no rows$"):
        result_of(refuses.remote())


def test_a_rank_that_was_killed_for_its_memory_is_told_of_without_pages_of_advice():
    said = "Task was killed due to the node running low on memory.\nRefer to the documentation."
    assert list(reasons(ray.exceptions.OutOfMemoryError(said))) == [said.splitlines()[0]]
