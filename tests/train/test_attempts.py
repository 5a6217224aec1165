"""Which failures end a bag: only attempts in a row that stored no later checkpoint count."""

import pytest
from ray.exceptions import ActorDiedError, RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from boom_ray.errors import ClusterError, InputError
from boom_ray.train.attempts import StopAtBoomErrors, StopWithoutProgress
from tests.artifacts.test_checkpoints import save

LOST = {0: RuntimeError("Traceback\n  in a collective\nConnection closed by peer"), 1: ActorDiedError()}


def preempted() -> dict[int, Exception]:
    """The error of a rank whose node was taken away, and that of a rank which noticed it."""
    error = RayActorError("a", "the node was drained", preempted=True)
    return {0: LOST[0], 1: WorkerHealthCheckFailedError("rank 1", error)}


def test_attempts_in_a_row_without_a_later_checkpoint_end_the_bag(tmp_path):
    root = str(tmp_path)
    save(root, 2)
    callback = StopWithoutProgress(root, max_failures=1)
    callback.after_exception(None, LOST)
    save(root, 4)
    callback.after_exception(None, LOST)  # it has stored a later checkpoint
    callback.after_exception(None, LOST)
    for _ in range(3):  # polls of an attempt whose node is taken away
        callback.after_exception(None, preempted())
    save(root, 3, attempt="b")  # no later one
    with pytest.raises(ClusterError, match=r"^Connection closed by peer; .* step 4: 2, allowed are 1 "):
        callback.after_exception(None, LOST)


def test_a_bag_without_any_checkpoint_may_fail_as_often_as_allowed(tmp_path):
    callback = StopWithoutProgress(str(tmp_path), max_failures=0)
    with pytest.raises(ClusterError, match=r"step 0: 1, allowed are 0"):
        callback.after_exception(None, LOST)


def test_an_error_that_every_attempt_would_meet_ends_the_bag_at_once():
    StopAtBoomErrors().after_exception(None, LOST)
    with pytest.raises(InputError, match="a wrong recipe"):
        StopAtBoomErrors().after_exception(None, LOST | {2: RuntimeError(InputError("a wrong recipe"))})
