"""Recipes: mistakes are named, and the identity holds the settings that change the weights."""

from typing import get_args

import pytest
import yaml

from boom_ray import recipe
from boom_ray.errors import InputError, NotFoundError
from boom_ray.recipe import Lora, Recipe
from boom_ray.recipe.fields import Section
from boom_ray.runs.updates import UpdateRequest

OWN = {"ratio": 50}
VALUES = {"name": "x", "base_model": "base", "data": {"tasks": [{"name": "a", "path": "a.jsonl"}]}}


def load(tmp_path, **sections):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(VALUES | sections))
    return Recipe.load(str(path))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"lerning_rate": 1e-5}}, "train.lerning_rate: unknown key; did you mean 'learning_rate'?"),
        ({"train": {"execution": {"num_worker": 2}}}, "did you mean 'num_workers'?"),
        (
            {"data": {"tasks": [{"name": "a", "path": "p", "typ": "sts"}]}},
            "data.tasks.0.typ: unknown key; did you",
        ),
        ({"bag": {}}, "bag: unknown key; did you mean 'bags'?"),
        ({"train": {"batch_size": "many"}}, "train.batch_size: Input should be a valid integer"),
        ({"train": {"execution": {"offload": "all"}}}, "offload 'all' needs zero_stage 3"),
        ({"train": {"execution": {"zero_stage": 0}}}, "zero_stage 1, 2 or 3"),
        (
            {"train": {"execution": {"use_gpu": True, "deterministic": True}}},
            "deterministic needs a number for chunk_tokens",
        ),
        ({"train": {"execution": {"num_workers": {"min": 3, "max": 2}}}}, "got min 3 and max 2; min is at"),
        ({"train": {"execution": {"num_workers": {"min": 1, "mx": 2}}}}, "did you mean 'max'?"),
        (
            {"train": {"batch_size": 8, "execution": {"num_workers": {"min": 1, "max": 9}}}},
            "execution.num_workers: got max 9; allowed is at most one rank per query",
        ),
        (
            {
                "train": {
                    "execution": {
                        "num_workers": {"min": 1, "max": 2},
                        "resources_per_worker": {"CPU": 0.1, "memory": 3e9},
                    }
                }
            },
            "down to 1/64: change CPU",
        ),
        (
            {"train": {"precision": "fp8"}},
            "train.precision: Input should be 'fp32', 'bf16' or 'fp16', got 'fp8'",
        ),
        ({"bags": {"ratios": "{1,2}"}}, "no preset '{1,2}'; allowed: {20,40,60,80,100}"),
        ({"train": {"learning_rate": float("inf")}}, "train.learning_rate: Input should be a finite number"),
        (
            {"merge": {"weights": [float("nan"), 1.0]}},
            "weights.list[float].0: Input should be a finite",
        ),
        (
            {"data": VALUES["data"] | {"instruction": "a \ud800"}},
            "data.instruction: half of a surrogate",
        ),
        (
            {"data": VALUES["data"] | {"query_template": "Use } {query}"}},
            "data.query_template: got 'Use } {",
        ),
        ({"base_model": "\ud800"}, "a path must be valid Unicode"),
        ({"evaluate": {"data": "a\0b"}}, "a path cannot contain a null character"),
        ({"bags": {"ratios": [120]}}, "bags.ratios.0.ratio: Input should be less than or equal to 100"),
        ({"bags": {"ratios": [60, 60], "partition": True}}, "disjoint bags cannot hold 120 %"),
        ({"train": {"average": {"every_steps": 5}}}, "train.average: got last None and decay None; set one"),
        ({"train": {"average": {"last": 2, "decay": 0.9, "every_steps": 5}}}, "got last 2 and decay 0.9"),
        (
            {
                "train": {"average": {"last": 2, "every_steps": 5}},
                "bags": {"ratios": [5, OWN | {"lora": {}}]},
            },
            "train.average: the mean of an adapter's factors is not that of their products",
        ),
        ({"bags": {"ratios": [OWN | {"learning_rat": 1}]}}, "did you mean 'learning_rate'?"),
        ({"bags": {"ratios": [OWN | {"lora": {"rnk": 1}}]}}, "bags.ratios.0.lora.rnk: unknown key; did you"),
        ({"bags": {"ratios": [OWN | {"epochs": None}]}}, "bags.ratios.0: epochs has no value"),
        ({"bags": {"ratios": [5, OWN | {"tasks": {"aa": 5}}]}}, "bags.ratios.1.tasks: no task 'aa'; did you"),
        ({"bags": {"ratios": [OWN | {"tasks": {"a": 0}}]}}, "bags.ratios.0.tasks: 0 % of every task"),
        (
            {"bags": {"ratios": [OWN | {"tasks": {"a": 80}}, 50], "partition": True}},
            "disjoint bags cannot hold 130 % of task a",
        ),
        ({"merge": {"weights": [1, 2, 3]}}, "got 3 weights for 5 bags"),
        ({"merge": {"scale": "auto"}}, "set evaluate.development"),
        ({"merge": {"scale": 0.5, "space": "weights"}}, "scale: got 0.5, a factor on task vectors"),
        ({"data": {"tasks": [], "query_template": "{query}!"}}, "it must end in {query}"),
        ({"name": "a/b"}, "allowed: letters, digits"),
        ({"storage": "${NOT_SET_ANYWHERE}/x"}, "the environment variable NOT_SET_ANYWHERE is not set"),
    ],
)
def test_a_mistake_is_named(tmp_path, sections, message):
    with pytest.raises(InputError) as caught:
        load(tmp_path, **sections)
    assert message in str(caught.value)


def test_all_mistakes_are_listed_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        load(tmp_path, train={"epochs": 0, "group_size": 1})
    assert "train.epochs" in str(caught.value) and "train.group_size" in str(caught.value)


@pytest.mark.parametrize("text", ["a: [", "- a list", "", "\x00"])
def test_a_file_that_is_not_a_recipe(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        Recipe.load(str(tmp_path / "recipe.yaml"))


def test_yaml_never_builds_objects(tmp_path):
    (tmp_path / "recipe.yaml").write_text("name: !!python/object/apply:os.getcwd []")
    with pytest.raises(InputError, match="not valid YAML"):
        Recipe.load(str(tmp_path / "recipe.yaml"))


def test_paths_are_relative_to_the_recipe_and_uris_are_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("BUCKET", "s3://bucket")
    loaded = load(tmp_path, storage="${BUCKET}/runs/", base_model="hf://Qwen/Qwen3-0.6B")
    assert loaded.data.tasks[0].path == str(tmp_path / "a.jsonl")
    assert loaded.root == "s3://bucket/runs/x"
    assert loaded.base_model.path == "hf://Qwen/Qwen3-0.6B"


@pytest.mark.parametrize(
    ("preset", "cost"),
    [("{20,40,60,80,100}", 3.0), ("{80,100}", 1.8), ("{60,60,60}", 1.8), ("{50}-and-rest", 1.0)],
)
def test_presets_have_the_costs_of_the_paper(tmp_path, preset, cost):
    bags = load(tmp_path, bags={"ratios": preset}).bags
    assert sum(bag.ratio for bag in bags.ratios) / 100 == pytest.approx(cost)
    assert bags.partition == (preset == "{50}-and-rest")


def test_identity_holds_what_changes_the_weights_and_nothing_else(tmp_path):
    one = load(tmp_path, train={"execution": {"num_workers": 4, "zero_stage": 3}})
    other = load(tmp_path, train={"learning_rate": 1e-4})
    elastic = load(tmp_path, train={"execution": {"num_workers": {"min": 4, "max": 64}}})
    assert Recipe.model_validate_json(elastic.model_dump_json()) == elastic
    plain = load(tmp_path)
    assert recipe.identity(one.train) == recipe.identity(plain.train) == recipe.identity(elastic.train)
    assert recipe.identity(other.train) != recipe.identity(plain.train)
    averaged = load(tmp_path, train={"average": {"last": 2, "every_steps": 5}})
    keys = recipe.identity(plain.train).keys()
    assert "average" not in keys and recipe.identity(averaged.train).keys() == keys | {"average"}


def test_a_bag_has_settings_of_its_own_and_otherwise_those_of_the_recipe(tmp_path):
    own = {"ratio": 60, "learning_rate": 1e-4, "epochs": 2, "seed": 1, "temperature": 0.05}
    own |= {"tasks": {"a": 20}, "max_steps": None, "lora": None}
    adapted = {"ratio": 60, "lora": {"rank": 4}}
    bags, train = {"ratios": [60, {"ratio": 60}, own, adapted]}, {"max_steps": 9, "lora": {"rank": 8}}
    loaded = load(tmp_path, bags=bags, train=train)
    trained = [loaded.train_of(index) for index in range(4)]
    assert trained[0] == trained[1] == loaded.train
    changed = {"learning_rate": 1e-4, "epochs": 2, "seed": 1, "temperature": 0.05, "max_steps": None}
    assert trained[2] == loaded.train.model_copy(update=changed | {"lora": None})
    assert trained[3] == loaded.train.model_copy(update={"lora": Lora(rank=4)})
    assert [bag.ratio_of("a") for bag in loaded.bags.ratios] == [60, 60, 20, 60]
    words = loaded.bags.ratios[2].describe()
    assert words.startswith("60 % of every task, 20 % of a, ") and "lora none" in words
    again = Recipe.model_validate_json(loaded.model_dump_json())
    assert again == loaded and [again.train_of(index) for index in range(4)] == trained


def test_bags_without_settings_of_their_own_have_the_identity_of_plain_numbers(tmp_path):
    plain = {"ratios": [50.0, 100.0], "partition": False, "seed": 42}
    written = load(tmp_path, bags={"ratios": [{"ratio": 50}, 100]}).bags
    assert recipe.identity(written) == plain
    own = load(
        tmp_path, bags={"ratios": [{"ratio": 50, "epochs": 2}, {"ratio": 100, "tasks": {"a": 5}}]}
    ).bags
    assert recipe.identity(own) != plain
    assert recipe.identity(own.samples) == plain | {"ratios": [50.0, {"ratio": 100.0, "tasks": {"a": 5.0}}]}


PYTHON = {
    "name": "x",
    "base_model": {"path": "base"},
    "data": {"tasks": [{"name": "a", "path": "rows/*.jsonl"}]},
}


def test_a_recipe_made_in_python_has_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    made = Recipe(**PYTHON, evaluate={"data": "eval"})
    assert made.storage == "/home/someone/boom-ray" and made.root == "/home/someone/boom-ray/x"
    assert made.base_model.path == f"{tmp_path}/base"
    assert made.data.tasks[0].path == f"{tmp_path}/rows/*.jsonl"
    assert made.evaluate.data == f"{tmp_path}/eval"
    assert Recipe(**PYTHON, storage="runs").root == f"{tmp_path}/runs/x"
    assert Recipe(**PYTHON, storage="s3://bucket/runs/").root == "s3://bucket/runs/x"
    assert Recipe.model_validate_json(made.model_dump_json()) == made


def test_paths_of_a_file_are_relative_to_it_and_an_override_to_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/someone")
    values = {**PYTHON, "evaluate": {"data": "../eval"}, "storage": "${NOT_SET_ANYWHERE}"}
    (tmp_path / "below" / "recipe.yaml").write_text(yaml.safe_dump(values))
    loaded = Recipe.load("below/recipe.yaml", storage="runs")
    assert loaded.storage == f"{tmp_path}/runs"
    assert loaded.base_model.path == f"{tmp_path}/below/base" and loaded.evaluate.data == f"{tmp_path}/eval"
    assert loaded.data.tasks[0].path == f"{tmp_path}/below/rows/*.jsonl"
    assert load(tmp_path).storage == "/home/someone/boom-ray"


def test_a_password_in_a_uri_is_refused_and_not_repeated(tmp_path):
    for sections in ({"storage": "s3://key:hush@bucket"}, {"base_model": "s3://key:hush@bucket/base"}):
        with pytest.raises(InputError, match=r"storage: |base_model\.path: ") as caught:
            load(tmp_path, **sections)
        assert "hush" not in str(caught.value)


def test_a_recipe_that_does_not_exist(tmp_path):
    with pytest.raises(NotFoundError, match="nothing-here"):
        Recipe.load(tmp_path / "nothing-here")


@pytest.mark.parametrize("model", [*Section.__subclasses__(), UpdateRequest])
def test_the_default_of_a_float_is_a_float(model):
    """An identity is a hash of JSON, in which the default 40 and a written 40.0 differ."""
    for name, field in model.model_fields.items():
        if float in (field.annotation, *get_args(field.annotation)) and isinstance(field.default, int):
            pytest.fail(f"{name}: the default of a float is the integer {field.default}")


@pytest.mark.parametrize(
    "text",
    [
        *("name: 2001-99-99", "name: !!int x", "name: !!int ''", "name: !!bool x", "name: !!timestamp x"),
        *("[" * 5000, "name: &a [*a", "\xff", "? [a]\n: b\n", "name: \x07"),
    ],
)
def test_what_yaml_cannot_convert_is_not_valid(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="not valid YAML"):
        Recipe.load(str(path))


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(VALUES), encoding="utf-8-sig")
    assert Recipe.load(str(path)).name == "x"
