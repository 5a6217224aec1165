"""Continuous batching by tokens: requests that arrive during a pass share the next one, up to a token budget.

`serve.batch` closes a batch when a timer or a count of requests says so, which leaves a busy model with many
small batches. Here nothing waits for a timer: an idle model starts at once, and the busier the model, the
fuller its passes. Each encoder replica has such a queue. The ingress has one as well, whose passes are calls
of a replica that several requests share.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

from boom_ray.model.tokens import Tokens


@dataclass(eq=False)
class PendingRequest:
    """A request in the queue or in a pass.

    Attributes:
        tokens: Token ids of its inputs.
        since: Time of arrival, on the clock of the event loop.
        future: [n, d] vectors; cancelled if the caller no longer waits.
    """

    tokens: Tokens
    since: float
    future: "asyncio.Future[np.ndarray]"


class TokenBatcher:
    """A queue in front of a model. All methods run on one event loop, so that no locks are needed.

    Args:
        encode: From the token ids of n texts to [n, d] vectors.
        pass_tokens: Maximum tokens in one pass; a larger request is a pass of its own.
        concurrency: Maximum passes at the same time.
        on_pass: Called at the start of each pass with its tokens and the seconds each request waited.
    """

    def __init__(
        self,
        encode: Callable[[Tokens], Awaitable[np.ndarray]],
        pass_tokens: int,
        concurrency: int,
        on_pass: Callable[[int, list[float]], None],
    ) -> None:
        self.encode, self.pass_tokens = encode, pass_tokens
        self.concurrency, self.on_pass = concurrency, on_pass
        self.waiting: deque[PendingRequest] = deque()
        self.running: set[asyncio.Task[None]] = set()

    async def __call__(self, tokens: Tokens) -> np.ndarray:
        """[n, d] vectors of one request, or the exception of `encode`.

        If the caller is cancelled, a waiting request is dropped; a pass in progress is cancelled once nobody
        waits for any request in it.
        """
        loop = asyncio.get_running_loop()
        request = PendingRequest(tokens, loop.time(), loop.create_future())
        self.waiting.append(request)
        self._start_passes()
        return await request.future

    def _start_passes(self) -> None:
        while len(self.running) < self.concurrency and (batch := self._next_batch()):
            task = asyncio.create_task(self._pass(batch))
            self.running.add(task)  # the event loop itself keeps only weak references to tasks
            task.add_done_callback(self._pass_ended)
            for request in batch:
                # Awaiting a future cancels it when the caller is cancelled, and this callback runs.
                request.future.add_done_callback(partial(self._cancel_if_unwanted, task, batch))

    def _pass_ended(self, task: "asyncio.Task[None]") -> None:
        self.running.discard(task)
        self._start_passes()

    @staticmethod
    def _cancel_if_unwanted(task: "asyncio.Task[None]", batch: list[PendingRequest], _: object) -> None:
        if all(request.future.done() for request in batch):
            task.cancel()

    async def _pass(self, batch: list[PendingRequest]) -> None:
        now = asyncio.get_running_loop().time()
        tokens = Tokens.concatenate([request.tokens for request in batch])
        self.on_pass(len(tokens.ids), [now - request.since for request in batch])
        try:
            vectors = await self.encode(tokens)
        except Exception as error:  # not CancelledError: then no caller is left
            for request in batch:
                if not request.future.done():
                    request.future.set_exception(error)
            return
        start = 0
        for request in batch:
            end = start + len(request.tokens)
            if not request.future.done():
                request.future.set_result(vectors[start:end])
            start = end

    def _next_batch(self) -> list[PendingRequest]:
        """The requests of the next pass in the order of arrival, without those that were cancelled.

        The order is strict: a small request never overtakes a large one, which would starve it.
        """
        batch, total = list[PendingRequest](), 0
        while self.waiting:
            request = self.waiting[0]
            if not request.future.done():
                total += len(request.tokens.ids)
                if batch and total > self.pass_tokens:
                    break
                batch.append(request)
            self.waiting.popleft()
        return batch
