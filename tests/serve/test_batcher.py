"""The queue in front of a model, without Ray: batching, cancellation, exceptions."""

import asyncio

import numpy as np
import pytest

from boom_ray.model.tokens import Tokens
from boom_ray.serve.batcher import TokenBatcher


class Passes:
    """A model that sums token ids, and finishes a pass when the test allows it."""

    def __init__(self, concurrency: int = 1, pass_tokens: int = 6) -> None:
        self.seen: list[list[list[int]]] = []
        self.go, self.passed = asyncio.Semaphore(0), list[tuple[int, int]]()
        self.batcher = TokenBatcher(
            self.encode,
            pass_tokens,
            concurrency,
            lambda tokens, waited: self.passed.append((tokens, len(waited))),
        )

    async def encode(self, tokens: Tokens) -> np.ndarray:
        token_ids = tokens.lists()
        self.seen.append(token_ids)
        await self.go.acquire()
        if [0] in token_ids:
            raise ValueError("no such token")
        return np.array([[sum(ids)] for ids in token_ids])

    def request(self, *token_ids: list[int]) -> "asyncio.Task[np.ndarray]":
        return asyncio.create_task(self.batcher(Tokens.of(token_ids)))

    async def finish(self, passes: int) -> None:
        for _ in range(passes):
            self.go.release()
            await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_waiting_requests_share_a_pass_up_to_the_budget_and_get_their_own_vectors():
    async def run() -> None:
        passes = Passes()
        requests = [
            passes.request([1]),
            passes.request([2, 2], [3]),
            passes.request([4]),
            passes.request([5, 5, 5]),
        ]
        await settle()
        assert passes.seen == [[[1]]]
        await passes.finish(3)
        assert passes.seen == [[[1]], [[2, 2], [3], [4]], [[5, 5, 5]]]
        assert passes.passed == [(1, 1), (4, 2), (3, 1)]
        assert [request.result().tolist() for request in requests] == [[[1]], [[4], [3]], [[4]], [[15]]]

    asyncio.run(run())


def test_a_request_over_the_budget_is_a_pass_of_its_own():
    async def run() -> None:
        passes = Passes()
        requests = [passes.request([1]), passes.request([1] * 9), passes.request([2])]
        await passes.finish(3)
        assert passes.seen == [[[1]], [[1] * 9], [[2]]]
        assert all(request.done() for request in requests)

    asyncio.run(run())


def test_at_most_concurrency_passes_run_at_once():
    async def run() -> None:
        passes = Passes(concurrency=2)
        requests = [passes.request([number]) for number in range(1, 6)]
        await settle()
        assert passes.seen == [[[1]], [[2]]]
        await passes.finish(3)
        assert passes.seen[2:] == [[[3], [4], [5]]]
        assert all(request.done() for request in requests)

    asyncio.run(run())


def test_cancelled_requests_are_dropped():
    async def run() -> None:
        passes = Passes()
        computed, waiting, last = passes.request([1]), passes.request([2]), passes.request([3])
        await settle()
        waiting.cancel()
        computed.cancel()
        await settle()
        assert passes.seen == [[[1]], [[3]]]
        await passes.finish(1)
        assert last.result().tolist() == [[3]]

    asyncio.run(run())


def test_a_pass_continues_for_the_requests_that_remain():
    async def run() -> None:
        passes = Passes()
        first, cancelled, stays = passes.request([1]), passes.request([2]), passes.request([3])
        await passes.finish(1)
        cancelled.cancel()
        await passes.finish(1)
        assert passes.seen[1] == [[2], [3]]
        assert (first.result().tolist(), stays.result().tolist()) == ([[1]], [[3]])

    asyncio.run(run())


def test_an_exception_reaches_every_request_of_its_pass_and_no_other():
    async def run() -> None:
        passes = Passes()
        requests = [passes.request([1]), passes.request([0]), passes.request([2])]
        await passes.finish(1)
        after = passes.request([4])
        await passes.finish(2)
        for request in requests[1:]:
            with pytest.raises(ValueError, match="no such token"):
                request.result()
        assert (requests[0].result().tolist(), after.result().tolist()) == ([[1]], [[4]])

    asyncio.run(run())
