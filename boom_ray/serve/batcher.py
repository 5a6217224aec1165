"""Requests that wait while a model computes go on together next, up to a budget of tokens.

`serve.batch` cuts its batches when requests arrive, so that a busy model is left with many small ones; here
nothing waits for a timer, and the busier the model is, the fuller its passes are. Each encoder has such a
queue, and so has the ingress, where a pass is a call of an encoder that many requests share.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

TokenIds = list[list[int]]


@dataclass(eq=False)
class Waiting:
    """A request, how many tokens it has, since when it waits, and what it waits for."""

    token_ids: TokenIds
    tokens: int
    since: float
    future: "asyncio.Future[np.ndarray]"


class TokenBatcher:
    """One queue.

    Args:
        encode: From n lists of token ids to [n, d] vectors.
        pass_tokens: Tokens in one pass; a request with more is a pass of its own.
        concurrency: Passes under way at once.
        passed: Told of every pass its tokens, and how many seconds each of its requests waited.
    """

    def __init__(
        self,
        encode: Callable[[TokenIds], Awaitable[np.ndarray]],
        pass_tokens: int,
        concurrency: int,
        passed: Callable[[int, list[float]], None],
    ) -> None:
        self.encode, self.pass_tokens, self.concurrency, self.passed = (
            encode,
            pass_tokens,
            concurrency,
            passed,
        )
        self.waiting: deque[Waiting] = deque()
        self.running: set[asyncio.Task[None]] = set()

    async def __call__(self, token_ids: TokenIds) -> np.ndarray:
        """[n, d] vectors of one request; if its caller goes away, and those beside it, it is not encoded."""
        loop = asyncio.get_running_loop()
        request = Waiting(token_ids, sum(map(len, token_ids)), loop.time(), loop.create_future())
        self.waiting.append(request)
        self._start()
        return await request.future

    def _start(self) -> None:
        while len(self.running) < self.concurrency and (batch := self._next()):
            task = asyncio.create_task(self._pass(batch))
            self.running.add(task)
            task.add_done_callback(self._ended)
            for request in batch:
                request.future.add_done_callback(partial(self._drop_unwanted, task, batch))

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self.running.discard(task)
        self._start()

    @staticmethod
    def _drop_unwanted(task: "asyncio.Task[None]", batch: list[Waiting], _: object) -> None:
        if all(request.future.done() for request in batch):
            task.cancel()

    async def _pass(self, batch: list[Waiting]) -> None:
        now = asyncio.get_running_loop().time()
        self.passed(sum(request.tokens for request in batch), [now - request.since for request in batch])
        try:
            vectors = await self.encode([ids for request in batch for ids in request.token_ids])
        except Exception as error:
            for request in batch:
                if not request.future.done():
                    request.future.set_exception(error)
            return
        start = 0
        for request in batch:
            end = start + len(request.token_ids)
            if not request.future.done():
                request.future.set_result(vectors[start:end])
            start = end

    def _next(self) -> list[Waiting]:
        """The requests of the next pass, in the order they came; those whose callers are gone are dropped."""
        batch, total = list[Waiting](), 0
        while self.waiting:
            request = self.waiting[0]
            if not request.future.done():
                total += request.tokens
                if batch and total > self.pass_tokens:
                    break
                batch.append(request)
            self.waiting.popleft()
        return batch
