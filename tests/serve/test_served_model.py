"""The names that requests may use for a served model."""

import pytest

from boom_ray.serve.served_model import ServedModel, find_model, model_name_of


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


@pytest.mark.parametrize("model", [CODE, MAIL])
def test_an_application_reveals_the_name_of_its_model(model):
    assert model_name_of(model.application) == model.name
