"""The queue in front of a model, without Ray: what goes together, what is dropped, what is passed on."""

import asyncio

import numpy as np
import pytest

from boom_ray.serve.batcher import TokenBatcher


class Passes:
    """A model that sums token ids, and computes a pass when it is let."""

    def __init__(self, concurrency: int = 1, pass_tokens: int = 6) -> None:
        self.seen: list[list[list[int]]] = []
        self.go, self.told = asyncio.Semaphore(0), list[tuple[int, int]]()
        self.batcher = TokenBatcher(
            self.encode,
            pass_tokens,
            concurrency,
            lambda tokens, waited: self.told.append((tokens, len(waited))),
        )

    async def encode(self, token_ids: list[list[int]]) -> np.ndarray:
        self.seen.append(token_ids)
        await self.go.acquire()
        if [0] in token_ids:
            raise ValueError("no such token")
        return np.array([[sum(ids)] for ids in token_ids])

    def ask(self, *token_ids: list[int]) -> "asyncio.Task[np.ndarray]":
        return asyncio.create_task(self.batcher(list(token_ids)))

    async def let(self, passes: int) -> None:
        for _ in range(passes):
            self.go.release()
            await settle()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_what_waits_goes_together_up_to_the_budget_and_comes_back_in_its_place():
    async def run() -> None:
        passes = Passes()
        requests = [passes.ask([1]), passes.ask([2, 2], [3]), passes.ask([4]), passes.ask([5, 5, 5])]
        await settle()
        assert passes.seen == [[[1]]]
        await passes.let(3)
        assert passes.seen == [[[1]], [[2, 2], [3], [4]], [[5, 5, 5]]]
        assert passes.told == [(1, 1), (4, 2), (3, 1)]
        assert [request.result().tolist() for request in requests] == [[[1]], [[4], [3]], [[4]], [[15]]]

    asyncio.run(run())


def test_a_request_over_the_budget_is_a_pass_of_its_own():
    async def run() -> None:
        passes = Passes()
        requests = [passes.ask([1]), passes.ask([1] * 9), passes.ask([2])]
        await passes.let(3)
        assert passes.seen == [[[1]], [[1] * 9], [[2]]]
        assert all(request.done() for request in requests)

    asyncio.run(run())


def test_as_many_passes_as_allowed_are_under_way():
    async def run() -> None:
        passes = Passes(concurrency=2)
        requests = [passes.ask([number]) for number in range(1, 6)]
        await settle()
        assert passes.seen == [[[1]], [[2]]]
        await passes.let(3)
        assert passes.seen[2:] == [[[3], [4], [5]]]
        assert all(request.done() for request in requests)

    asyncio.run(run())


def test_what_nobody_waits_for_is_dropped():
    async def run() -> None:
        passes = Passes()
        computed, waiting, last = passes.ask([1]), passes.ask([2]), passes.ask([3])
        await settle()
        waiting.cancel()
        computed.cancel()
        await settle()
        assert passes.seen == [[[1]], [[3]]]
        await passes.let(1)
        assert last.result().tolist() == [[3]]

    asyncio.run(run())


def test_a_pass_goes_on_for_those_who_still_wait():
    async def run() -> None:
        passes = Passes()
        first, gone, stays = passes.ask([1]), passes.ask([2]), passes.ask([3])
        await passes.let(1)
        gone.cancel()
        await passes.let(1)
        assert passes.seen[1] == [[2], [3]]
        assert (first.result().tolist(), stays.result().tolist()) == ([[1]], [[3]])

    asyncio.run(run())


def test_what_a_pass_raises_reaches_all_who_wait_for_it_and_no_other():
    async def run() -> None:
        passes = Passes()
        requests = [passes.ask([1]), passes.ask([0]), passes.ask([2])]
        await passes.let(1)
        after = passes.ask([4])
        await passes.let(2)
        for request in requests[1:]:
            with pytest.raises(ValueError, match="no such token"):
                request.result()
        assert (requests[0].result().tolist(), after.result().tolist()) == ([[1]], [[4]])

    asyncio.run(run())
