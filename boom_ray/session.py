"""The connection to Ray: the cluster of RAY_ADDRESS, or one started on the spot, as `ray.init` does it."""

import logging
import os

import ray


def connect() -> None:
    """Connect this process to Ray, once. Worker logs stay in the dashboard; errors reach the caller."""
    if ray.is_initialized():
        return
    # A trainer that waits its turn on a busy machine is not a failed one (ray/train/v2/_internal/constants.py).
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "900")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    ray.init(log_to_driver=False, logging_level=logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
