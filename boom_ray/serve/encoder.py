"""The deployment that computes: one version of one model, checked before it takes a request."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from ray import serve

from boom_ray import artifacts, storage
from boom_ray.serve.batcher import TokenBatcher, TokenIds
from boom_ray.serve.limits import Limits

DEPLOYMENT = "encoder"


@dataclass(frozen=True)
class Served:
    """One version of a model as it is served.

    Attributes:
        uri: Its directory.
        name: What clients call it.
        version: Sent with every answer in the header `x-model-version`.
        digest: Of its content.
        max_length: Longest input in tokens.
    """

    uri: str
    name: str
    version: str
    digest: str
    max_length: int

    @property
    def application(self) -> str:
        """Name of its Ray Serve application."""
        return f"boom-ray-{self.name}-{self.version}-{self.digest[:8]}"

    @staticmethod
    def name_in(application: str) -> str:
        """The model an application serves."""
        return application.removeprefix("boom-ray-").rsplit("-", 2)[0]


# A model that cannot be loaded is not mended by trying again, so one failure ends the start.
@serve.deployment(name=DEPLOYMENT, max_constructor_retry_count=1)
class Encoder:
    """One replica: the loaded model behind its queue."""

    def __init__(self, served: Served, limits: Limits, threads: int, device: str) -> None:
        import torch

        from boom_ray.model import directory, self_test
        from boom_ray.serve.metrics import EncoderMetrics

        torch.set_num_threads(threads)
        recorded = artifacts.verify(served.uri).self_test if artifacts.read_record(served.uri) else []
        local = storage.local_directory(served.uri)
        dtype = torch.float32 if device == "cpu" else torch.bfloat16
        encoder = directory.load_encoder(local, device=device, dtype=dtype).for_inference()
        self_test.check(encoder, recorded, served.uri)
        thread = ThreadPoolExecutor(1)

        async def compute(token_ids: TokenIds) -> np.ndarray:
            encode = partial(encoder.encode_tokens, token_ids, limits.pass_tokens)
            return await asyncio.get_running_loop().run_in_executor(thread, encode)

        metrics = EncoderMetrics(served.version, limits.pass_tokens)
        self.batcher = TokenBatcher(compute, limits.pass_tokens, 1, metrics.passed)

    async def encode(self, token_ids: TokenIds) -> np.ndarray:
        """[n, d] float32 vectors of one call, computed together with those that wait beside it."""
        return await self.batcher(token_ids)


def encoder_application(
    served: Served, limits: Limits, device: str, threads: int, replicas: tuple[int, int] = (1, 1)
) -> Any:
    """The Ray Serve application of one version.

    Args:
        replicas: Encoders at least and at most; between them Ray Serve follows the load.
    """
    least, most = replicas
    scaling: dict[str, Any] = {"num_replicas": least}
    if most > least:
        # An encoder with a call that is computed and another that waits has enough to do.
        scaling = {
            "autoscaling_config": {
                "min_replicas": least, "max_replicas": most, "target_ongoing_requests": 1.5,
            }
        }  # fmt: skip
    deployment: Any = Encoder.options(  # type: ignore[attr-defined]
        max_ongoing_requests=limits.ongoing_requests,
        ray_actor_options={"num_cpus": 0.5 if device == "cpu" else 1, "num_gpus": int(device == "cuda")},
        **scaling,
    )
    return deployment.bind(served, limits, threads, device)
