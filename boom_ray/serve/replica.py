"""The deployment of encoders: one version of one model, checked before it accepts a request."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
from ray import serve

from boom_ray import artifacts, storage
from boom_ray.model.tokens import Tokens
from boom_ray.serve.batcher import TokenBatcher
from boom_ray.serve.limits import Limits
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

        from boom_ray.model import directory, self_test
        from boom_ray.serve.metrics import EncoderMetrics

        torch.set_num_threads(threads)
        recorded = artifacts.verify(served.uri).self_test if artifacts.read_record(served.uri) else []
        local = storage.local_directory(served.uri)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        encoder = directory.load_encoder(local, device=device, dtype=dtype).for_inference()
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


def encoder_application(
    served: ServedModel, limits: Limits, device: str, threads: int, replicas: tuple[int, int] = (1, 1)
) -> Any:
    """The Ray Serve application of one version.

    Args:
        threads: CPU threads of a replica.
        replicas: Minimum and maximum number; Ray Serve scales with the load between the two.
    """
    minimum, maximum = replicas
    scaling: dict[str, Any] = {"num_replicas": minimum}
    if maximum > minimum:
        # A replica is busy with one call that is computed and another that waits for the next pass.
        scaling = {
            "autoscaling_config": {
                "min_replicas": minimum, "max_replicas": maximum, "target_ongoing_requests": 1.5,
            }
        }  # fmt: skip
    deployment: Any = EncoderReplica.options(  # type: ignore[attr-defined]
        max_ongoing_requests=limits.ongoing_requests,
        ray_actor_options={"num_cpus": 0.5 if device == "cpu" else 1, "num_gpus": int(device == "cuda")},
        **scaling,
    )
    return deployment.bind(served, limits, threads, device)
