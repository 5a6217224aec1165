"""The deployment of encoders: one version of one model, checked before it accepts a request."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from ray import serve

from boom_ray import artifacts, storage
from boom_ray.model.tokens import Tokens
from boom_ray.runtime import devices
from boom_ray.serve.batcher import TokenBatcher
from boom_ray.serve.limits import Limits
from boom_ray.serve.serve_settings import ServeSettings
from boom_ray.serve.served_model import ServedModel

DEPLOYMENT = "encoder"


# A model that cannot be loaded fails in the same way again: one failure ends the start.
@serve.deployment(name=DEPLOYMENT, max_constructor_retry_count=1)
class EncoderReplica:
    """One replica: the loaded model behind its queue.

    The constructor verifies the files against their record and the model against its recorded self-test. It
    raises if one differs, so that a damaged version never becomes ready.
    """

    def __init__(self, served: ServedModel, limits: Limits, threads: int, device: str) -> None:
        import torch

        from boom_ray.model import inference, self_test
        from boom_ray.serve.metrics import EncoderMetrics

        devices.check(device)
        torch.set_num_threads(threads)
        recorded = artifacts.verify(served.uri).self_test if artifacts.read_record(served.uri) else []
        encoder = inference.load(storage.local_directory(served.uri), device)
        self_test.check(encoder, recorded, served.uri)
        # One thread: passes run one after another, and the event loop stays free for health checks.
        thread = ThreadPoolExecutor(1)

        async def compute(tokens: Tokens) -> np.ndarray:
            # Without normalization, which some requests refuse: requests with both settings share a pass.
            encode = partial(encoder.encode_tokens, tokens, limits.pass_tokens, normalize=False)
            return await asyncio.get_running_loop().run_in_executor(thread, encode)

        metrics = EncoderMetrics(served.version, limits.pass_tokens)
        self.batcher = TokenBatcher(compute, limits.pass_tokens, 1, metrics.passed)

    async def encode(self, tokens: Tokens) -> np.ndarray:
        """[n, d] float32 pooled vectors of one call, computed in one pass with other waiting calls."""
        return await self.batcher(tokens)


def encoder_application(served: ServedModel, settings: ServeSettings, threads: int) -> Any:
    """The Ray Serve application of one version.

    Args:
        threads: CPU threads of a replica.
    """
    minimum, maximum = settings.min_replicas, settings.max_replicas
    scaling: dict[str, Any] = {"num_replicas": minimum}
    if maximum > minimum:
        # A replica is busy with one call that is computed and another that waits for the next pass.
        scaling = {
            "autoscaling_config": {
                "min_replicas": minimum, "max_replicas": maximum, "target_ongoing_requests": 1.5,
            }
        }  # fmt: skip
    limits, resources = settings.limits([served]), settings.encoder_resources()
    deployment: Any = EncoderReplica.options(  # type: ignore[attr-defined]
        max_ongoing_requests=limits.ongoing_requests,
        ray_actor_options={"num_cpus": resources["CPU"], "num_gpus": resources.get("GPU", 0)},
        **scaling,
    )
    return deployment.bind(served, limits, threads, settings.resolved_device())
