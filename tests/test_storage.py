"""Locations that other processes change while they are read."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

from boom_ray import storage

PLACES = 2_000


def test_a_directory_created_while_it_is_listed(tmp_path):
    places = [f"{tmp_path}/{number}" for number in range(PLACES)]
    may_make = [threading.Event() for _ in places]

    def make():
        for place, event in zip(places, may_make, strict=True):
            event.wait()
            os.mkdir(place)

    maker = threading.Thread(target=make, daemon=True)
    maker.start()
    for place, event in zip(places, may_make, strict=True):
        event.set()
        while not os.path.isdir(place):
            assert storage.list_names(place) == [] and storage.list_files(place) == {}
    maker.join()


def test_one_of_several_concurrent_writers_creates_a_file(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        for number in range(50):
            place, start = f"{tmp_path}/{number}/file", threading.Barrier(8)

            def write(content: bytes, place: str = place, start: threading.Barrier = start) -> bool:
                start.wait()
                return storage.create(place, content)

            contents = [b"%d" % writer for writer in range(8)]
            made = list(pool.map(write, contents))
            assert made.count(True) == 1 and storage.read_bytes(place) == contents[made.index(True)]
            assert os.listdir(os.path.dirname(place)) == ["file"]
