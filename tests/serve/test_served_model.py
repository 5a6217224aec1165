"""The names that requests may use for a served model."""

import re

import pytest

from boom_ray.serve.served_model import ServedModel, find_model


def served(name: str, version: str) -> ServedModel:
    return ServedModel(f"/models/{name}", name, version, "0123456789", 512)


CODE, MAIL = served("code", "v0001"), served("mail-de", "v0002")


@pytest.mark.parametrize(("requested", "found"), [
    (None, CODE), ("code", CODE), ("v0001", CODE), ("code:v0001", CODE), ("mail-de", MAIL), ("v0002", MAIL),
    ("mail-de:v0002", MAIL), ("mail-de:v0001", None), ("mail", None), ("v0003", None), ("", None),
])  # fmt: skip
def test_a_model_is_found_by_name_or_version_or_both(requested, found):
    assert find_model(requested, [CODE, MAIL]) == found


def test_a_version_of_two_models_names_neither():
    other = served("other", "v0001")
    assert find_model("v0001", [CODE, other]) is None
    assert find_model("other:v0001", [CODE, other]) == other


def test_a_name_comes_before_the_version_of_another():
    called_like_a_version = served("v0001", "base")
    assert find_model("v0001", [CODE, called_like_a_version]) == called_like_a_version


NAMES = [
    ("mine", "bag-1"), ("mine-bag", "1"), ("mine-bag-1", ""), ("mine", "bag/1"), ("mine", "bag_1"),
    ("a#b", "v1"), ("a:b", "v1"), ("%2F", "v1"), ("x" * 255, "v1"), ("x" * 255, "v2"), ("模型" * 40, "v1"),
]  # fmt: skip


def test_versions_have_applications_that_ray_serve_can_name():
    names = {served(name, version).application for name, version in NAMES}
    assert len(names) == len(NAMES)
    # Ray Serve separates parts of names by "#" and "::", and has them in names of log files.
    assert all(re.fullmatch(r"boom-ray-[A-Za-z0-9._-]+", name) and len(name) <= 100 for name in names)
    assert served("mine", "v0001").application.startswith("boom-ray-mine-v0001-")
