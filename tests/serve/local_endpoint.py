"""The app of an endpoint in this process: all parts of the ingress are real, and the encoder needs no Ray."""

import asyncio
import contextlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
from starlette.testclient import TestClient

from boom_ray.model import directory
from boom_ray.model.tokens import Tokens
from boom_ray.serve import build
from boom_ray.serve.batcher import TokenBatcher
from boom_ray.serve.ingress import ActiveModel, Endpoint, Ingress
from boom_ray.serve.limits import Limits
from boom_ray.serve.request_reader import RequestReader
from boom_ray.serve.routes import build_app
from boom_ray.serve.served_model import ServedModel

PASS_TOKENS = 2048
UNDEPLOYED = Ingress.func_or_class.__mro__[1]  # the class below the decorators of Ray Serve


def active(served: ServedModel) -> ActiveModel:
    """A model whose passes run in a thread."""
    encoder, thread = directory.load_encoder(served.uri), ThreadPoolExecutor(1)

    async def compute(tokens: Tokens) -> np.ndarray:
        encode = partial(encoder.encode_tokens, tokens, PASS_TOKENS, normalize=False)
        return await asyncio.get_running_loop().run_in_executor(thread, encode)

    batcher = TokenBatcher(compute, PASS_TOKENS, 1, lambda tokens, waited: None)
    return ActiveModel(served, RequestReader.load(served.uri), batcher, since=1)


@contextlib.contextmanager
def local_endpoint(*models: str) -> Iterator[TestClient]:
    """A client of the routes for model directories."""
    served = build.describe(list(models))
    ingress = UNDEPLOYED(Endpoint("", None))
    ingress.models = {one.name: active(one) for one in served}
    ingress.key_digests = ()
    ingress.limits = Limits(PASS_TOKENS, max(one.max_length for one in served))
    with TestClient(build_app(ingress)) as client:
        yield client
