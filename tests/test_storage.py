"""Locations that other processes change while they are read."""

import os
import threading

from boom_ray import storage

PLACES = 2_000


def test_a_directory_that_comes_into_being_while_it_is_listed(tmp_path):
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
