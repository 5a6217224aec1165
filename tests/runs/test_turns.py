"""One driver of a version at a time: the rule by which drivers wait, under every order of their steps."""

import random
from collections.abc import Iterator
from itertools import product

from boom_ray.runs.heartbeat import Heartbeat, State


def heartbeat(number: int) -> Heartbeat:
    name = f"driver-{number}"
    return Heartbeat(
        driver=name, command="run", version="v0001", started=1.0, time=1.0, host="", pid=1, process_name=name
    )


def steps(mine: Heartbeat, stored: dict[str, Heartbeat], at_work: set[str]) -> Iterator[None]:
    """A driver that writes and reads as `Driver.await_turn` does; each step is one request to the storage."""

    def write(state: State) -> Heartbeat:
        stored[mine.driver] = mine.model_copy(update={"state": state})
        return stored[mine.driver]

    def ahead(beat: Heartbeat) -> bool:
        return bool(beat.ahead(list(stored.values())))

    while True:
        beat = write("waiting")
        yield
        while ahead(beat):
            yield
        yield
        beat = write("running")
        yield
        if not ahead(beat):
            break
        yield
    at_work.add(mine.driver)
    yield
    at_work.remove(mine.driver)
    write("done")


def run_in_order(order: Iterator[int], count: int) -> int:
    """Run so many drivers, the step of one after the step of another; returns how many came to their end."""
    stored, at_work = dict[str, Heartbeat](), set[str]()
    drivers = {number: steps(heartbeat(number), stored, at_work) for number in range(count)}
    for number in order:
        if number in drivers and next(drivers[number], "end") == "end":
            del drivers[number]
        assert len(at_work) <= 1
    return count - len(drivers)


def fairly(rng: random.Random, count: int) -> Iterator[int]:
    for _ in range(60):
        yield from rng.sample(range(count), count)


def test_two_drivers_are_never_at_work_together():
    for order in product(range(2), repeat=14):
        run_in_order(iter(order), 2)


def test_all_drivers_have_their_turn():
    rng = random.Random(0)
    for _ in range(300):
        count = rng.randint(2, 5)
        assert run_in_order(fairly(rng, count), count) == count
