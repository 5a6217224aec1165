"""Requests that wait while the model computes go through it together next, up to a budget of tokens.

`serve.batch` cuts its batches when requests arrive, so that a busy model is left with many small ones; here
nothing waits for a timer, and the busier the model is, the fuller its passes are.
"""

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from boom_ray.serve.metrics import EncoderMetrics

TokenIds = list[list[int]]
Waiting = tuple[TokenIds, int, float, "asyncio.Future[np.ndarray]"]


class TokenBatcher:
    """One queue in front of one model.

    Args:
        encode: From n lists of token ids to [n, d] vectors; called in `thread`.
        thread: Where the model computes.
        pass_tokens: Tokens in one pass; a request with more is a pass of its own.
    """

    def __init__(
        self,
        encode: Callable[[TokenIds], np.ndarray],
        thread: ThreadPoolExecutor,
        pass_tokens: int,
        metrics: EncoderMetrics,
    ) -> None:
        self.encode, self.thread, self.pass_tokens, self.metrics = encode, thread, pass_tokens, metrics
        self.waiting: deque[Waiting] = deque()
        self.running: asyncio.Task[None] | None = None

    async def __call__(self, token_ids: TokenIds) -> np.ndarray:
        """[n, d] vectors of one request; if its caller goes away first, it is not encoded."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[np.ndarray] = loop.create_future()
        self.waiting.append((token_ids, sum(map(len, token_ids)), loop.time(), future))
        if self.running is None:
            self.running = loop.create_task(self._run())
        return await future

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._next():
            requests = [token_ids for token_ids, *_ in batch]
            tokens = sum(tokens for _, tokens, *_ in batch)
            self.metrics.passed(tokens, self.pass_tokens, [loop.time() - since for *_, since, _ in batch])
            texts = list(itertools.chain.from_iterable(requests))
            try:
                vectors = await loop.run_in_executor(self.thread, self.encode, texts)
            except Exception as error:
                for *_, future in batch:
                    if not future.done():
                        future.set_exception(error)
                continue
            parts = np.split(vectors, np.cumsum([len(token_ids) for token_ids in requests])[:-1])
            for (*_, future), part in zip(batch, parts, strict=True):
                if not future.done():
                    future.set_result(part)
        self.running = None

    def _next(self) -> list[Waiting]:
        """The requests of the next pass, in the order they came."""
        batch, total = list[Waiting](), 0
        while self.waiting:
            if self.waiting[0][3].done():  # its caller is gone
                self.waiting.popleft()
                continue
            total += self.waiting[0][1]
            if batch and total > self.pass_tokens:
                break
            batch.append(self.waiting.popleft())
        return batch
