"""The errors that a driver gets from processes that die."""

import os
import signal

import pytest
import ray

from boom_ray.errors import InputError
from boom_ray.runtime.cluster import ProcessLost, result_of
from boom_ray.train.attempts import reasons

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_a_lost_process_is_one_message():
    @ray.remote(num_cpus=0, max_retries=0)
    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(
        ProcessLost, match=r"a process of the cluster was lost: .*Run the command again"
    ) as caught:
        result_of(dies.remote())
    assert len(str(caught.value).splitlines()) == 1


def test_a_runtime_environment_that_fails_reports_its_cause():
    @ray.remote(num_cpus=0, runtime_env={"working_dir": "file:///nowhere/code.zip"})
    def never_runs() -> None: ...

    with pytest.raises(ProcessLost, match=r"nowhere/code\.zip"):
        result_of(never_runs.remote())


def test_an_error_of_the_task_arrives_as_it_was_raised():
    @ray.remote(num_cpus=0)
    def refuses() -> None:
        raise InputError("bag-1: has no rows")

    with pytest.raises(InputError, match=r"^bag-1: has no rows$"):
        result_of(refuses.remote())


def test_an_error_of_a_task_that_another_task_awaits_arrives_as_it_was_raised():
    @ray.remote(num_cpus=0)
    def refuses() -> None:
        raise InputError("bag-1: has no rows")

    @ray.remote(num_cpus=0)
    def awaits() -> None:
        ray.get(refuses.remote())

    with pytest.raises(InputError, match=r"^bag-1: has no rows$"):
        result_of(awaits.remote())


def test_a_rank_killed_for_its_memory_is_one_line_without_pages_of_advice():
    message = "Task was killed due to the node running low on memory.\nRefer to the documentation."
    assert reasons([ray.exceptions.OutOfMemoryError(message)]) == message.splitlines()[0]
