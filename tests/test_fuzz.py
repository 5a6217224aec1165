"""No input is answered by a traceback: random and damaged files, values and command lines.

Each test has many more examples with `--slow` than without.
"""

import io
import json
import os
import random
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import click
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from boom_ray import artifacts
from boom_ray.cli import main
from boom_ray.data import corpus
from boom_ray.embed import text_source
from boom_ray.embed.embed_options import EmbedOptions
from boom_ray.evaluation import local_tasks
from boom_ray.evaluation.beir import read_beir
from boom_ray.merge import mergekit
from boom_ray.merge.check_inputs import check_inputs
from boom_ray.model import directory
from boom_ray.model.spec import EncoderSpec
from boom_ray.planner import shape
from boom_ray.planner.assumptions import Assumptions
from boom_ray.recipe import Data, Recipe, Task, identity
from boom_ray.runs import updates
from boom_ray.runs.identity import claim
from tests import fuzzing, texts
from tests.base_models import publish

SLOWER = 20


def fuzz(
    num_examples: int, *strategies: Any, uses: tuple[str, ...] = ()
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Run a test with examples in a directory of its own: always the same few, and with `--slow` many others.

    Args:
        uses: Fixtures whose values follow the drawn ones.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @pytest.mark.parametrize("times", [1, pytest.param(SLOWER, marks=pytest.mark.slow)])
        def test(times: int, request: pytest.FixtureRequest, tmp_path, monkeypatch) -> None:
            fixtures = [request.getfixturevalue(name) for name in uses]
            monkeypatch.chdir(tmp_path)
            monkeypatch.setenv("HOME", str(tmp_path))

            def of_one(drawn: tuple[Any, ...]) -> None:
                note(repr(drawn))
                check(*drawn, *fixtures)

            chosen = settings(
                max_examples=num_examples * times,
                derandomize=True,
                database=None,
                deadline=None,
                phases=[Phase.generate],  # a failure is reported as it is found, not made smaller
                suppress_health_check=list(HealthCheck),
            )
            chosen(given(st.tuples(*strategies))(of_one))()

        test.__name__, test.__doc__ = check.__name__, check.__doc__
        return test

    return decorate


def write(path: str, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


RECIPE = {
    "name": "quickstart",
    "storage": "runs",
    "base_model": {"path": "base", "pooling": "mean", "max_length": 64},
    "data": {
        "tasks": [
            {"name": "a", "path": "a.jsonl", "type": "retrieval", "instruction": "find it", "limit": 10},
            {"name": "b", "path": "b", "type": "sts", "expected_rows": 5},
        ],
        "instruction": "find",
        "query_template": "{instruction}: {query}",
        "max_bad_fraction": 0.5,
    },
    "bags": {"ratios": [50, 100], "partition": False, "seed": 1},
    "train": {
        "epochs": 1,
        "batch_size": 8,
        "temperature": 0.02,
        "matryoshka": [16, 32],
        "lora": {"rank": 4, "targets": ["all-linear"]},
        "learning_rate": 1e-4,
        "precision": "bf16",
        "execution": {"num_workers": 1, "resources_per_worker": {"CPU": 1}, "zero_stage": 1},
    },
    "merge": {"method": "ties", "weights": [1, 2], "density": [0.5, 0.5], "execution": {"num_workers": 1}},
    "evaluate": {"data": "eval", "max_length": 32},
}


def use_recipe(content: bytes) -> None:
    """Read a recipe, and derive from it what a run does before it touches any other file."""
    write("recipe.yaml", content)
    with fuzzing.only_errors_for_users():
        recipe = Recipe.load("recipe.yaml")
        artifacts.fingerprint([identity(section) for section in (recipe.bags, recipe.train, recipe.merge)])
        directory.prompts_of(recipe.data, EncoderSpec("mean", 32))
        recipe.merge.densities(len(recipe.bags.ratios))
        assert Recipe.model_validate_json(recipe.model_dump_json()).model_dump() == recipe.model_dump()
        json.dumps(recipe.model_dump(mode="json")).encode()
    with fuzzing.only_errors_for_users():
        os.replace("recipe.yaml", "tasks.yaml")
        updates.read_tasks(os.path.abspath("tasks.yaml"))


@fuzz(200, fuzzing.damaged(RECIPE, fuzzing.values))
def test_recipes_with_damaged_values(recipe):
    use_recipe(
        yaml.safe_dump(recipe, allow_unicode=random.Random(str(recipe)).random() < 0.5).encode(
            "utf-8", "surrogatepass"
        )
    )


@fuzz(100, fuzzing.damaged_bytes(yaml.safe_dump(RECIPE).encode()))
def test_recipes_with_damaged_bytes(content):
    use_recipe(content)


ROW = {
    "query": "a question",
    "pos": ["an answer", "another"],
    "neg": ["no answer"],
    "prompt": "find: ",
    "pos_scores": [0.5, 1.0],
    "neg_scores": [0],
    "negative_1": "x",
    "id": "7",
    "text": "some text",
    "label": "a",
    "stars": 3,
}
ROW_KINDS = (local_tasks.LabelledText, local_tasks.ScoredPair, local_tasks.RankedQuery)
OTHER_ROW = {"id": 8, "text": "another text", "label": 1, "stars": 2.5, "anchor": "q", "positive": "p"}


def as_parquet(found: list[dict[str, Any]], options: dict[str, Any]) -> bytes:
    """The rows in the types that arrow infers; without the columns it refuses."""
    columns: dict[str, pa.Array] = {}
    for name in dict.fromkeys(key for row in found for key in row):
        try:
            columns[name] = pa.array([row.get(name) for row in found])
            columns[name].validate(full=True)
            pq.write_table(pa.table({name: columns[name]}), io.BytesIO())
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, ValueError, TypeError):
            columns.pop(name, None)
    target = io.BytesIO()
    try:
        pq.write_table(pa.table(columns), target, **options)
    except (pa.ArrowException, UnicodeEncodeError):
        return b""
    return target.getvalue()


def as_csv(found: list[dict[str, Any]]) -> bytes:
    """Rows as a careless program writes them."""
    header = list(dict.fromkeys(key for row in found for key in row))
    lines = [header, *([str(row.get(key, "")) for key in header] for row in found)]
    return "\n".join(",".join(line) for line in lines).encode("utf-8", "replace")


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """The name and content of a file with rows."""
    found = draw(st.lists(fuzzing.damaged(ROW) | fuzzing.damaged(OTHER_ROW), max_size=3))
    form = draw(st.sampled_from(["jsonl", "parquet", "csv", "txt", "json"]))
    if form == "parquet":
        content = as_parquet(
            found, draw(st.sampled_from([{}, {"compression": "zstd"}, {"row_group_size": 1}]))
        )
    elif form == "csv":
        content = as_csv(found)
    elif form == "json" and draw(st.booleans()):
        content = json.dumps(found).encode()
    else:
        content = "\n".join(map(json.dumps, found)).encode()
    return f"file.{form}", draw(fuzzing.damaged_bytes(content, most=2))


@fuzz(200, data_files(), st.sampled_from(["retrieval", "classification"]))
def test_corpora_with_damaged_rows(named, task_type):
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path, target = (os.path.join(os.path.abspath(folder), name) for name in (named[0], "corpus"))
        write(path, named[1])
        with fuzzing.only_errors_for_users():
            data = Data(tasks=[Task(name="t", path=path, type=task_type)], max_bad_fraction=1.0)
            assert corpus.expected_rows(data, os.path.join(folder, "none"))["t"] >= 0
            record = corpus.prepare(data, target, "t")
            assert len(corpus.load_task(target, "t")[:]["query"]) == record.config.tasks["t"].rows


@fuzz(200, data_files(), st.sampled_from(list(ROW_KINDS)))
def test_evaluation_tasks_with_damaged_rows(named, kind):
    with tempfile.TemporaryDirectory(dir=".") as folder:
        write(os.path.join(folder, f"test.{named[0].rpartition('.')[2]}"), named[1])
        with fuzzing.only_errors_for_users():
            local_tasks.find(os.path.abspath(folder))
            assert all(isinstance(row, kind) for row in local_tasks.read(folder, "test", kind))


@fuzz(
    200,
    data_files(),
    st.sampled_from([(), ("stars",), ("label", "stars"), ("text",), ("id", "pos"), ("x,x",)]),
    st.sampled_from([None, None, "stars > 2", "label == 'a'", "label == 1", "text != id", "stars >", "("]),
)
def test_inputs_with_damaged_rows(named, columns, condition):
    with tempfile.TemporaryDirectory(dir=".") as folder:
        path = os.path.join(os.path.abspath(folder), named[0])
        write(path, named[1])
        with fuzzing.only_errors_for_users():
            source = text_source.open_source(path, EmbedOptions(columns=columns, filter=condition))
            for unit in source.units:
                for table in source.read(unit):
                    assert len(text_source.row_keys(table)) == len(table)


BEIR_FILES = {
    "corpus.jsonl": b'{"_id": "d1", "title": "t", "text": "a document"}\n{"_id": 2, "text": "another"}\n',
    "queries.jsonl": b'{"_id": "q1", "text": "a query"}\n{"_id": "2", "text": "another"}\n',
    "qrels/test.tsv": b"query-id\tcorpus-id\tscore\nq1\td1\t1\n2\t2\t3\n",
}


@fuzz(200, *(fuzzing.damaged_bytes(content, most=2) for content in BEIR_FILES.values()), st.integers(0, 30))
def test_beir_directories_with_damaged_files(documents, queries, qrels, missing):
    with tempfile.TemporaryDirectory(dir=".") as folder:
        os.mkdir(os.path.join(folder, "qrels"))
        for number, (name, content) in enumerate(zip(BEIR_FILES, (documents, queries, qrels), strict=True)):
            if number != missing:
                write(os.path.join(folder, name), content)
        with fuzzing.only_errors_for_users():
            local_tasks.find(os.path.abspath(folder))
            task = read_beir(os.path.abspath(folder))
            assert set(task["queries"]) == set(task["relevant_docs"])
            for grades in task["relevant_docs"].values():
                assert all(name in task["corpus"] and grade > 0 for name, grade in grades.items())


COMMANDS = {
    "run": ["recipe.yaml"],
    "plan": ["recipe.yaml"],
    "train": ["recipe.yaml"],
    "update": ["recipe.yaml", "--new-data", "rows.jsonl"],
    "embed": ["model", "rows.jsonl", "vectors"],
    "drift": ["model", "model", "--data", "rows.jsonl"],
    "evaluate": ["model", "--data", "eval"],
    "merge": ["model", "model", "--out", "merged"],
    "serve": ["model", "--config-out", "serve.yaml"],
    "status": ["runs/a"],
    "models": ["runs"],
    "models list": ["runs/a"],
    "models diff": ["model", "runs/a"],
    "models rollback": ["runs/a", "v0001"],
    "lineage": ["runs/a"],
    "report": ["runs/a"],
    "reproduce": ["runs/a"],
    "verify": ["model"],
}
NAMES = (
    *("recipe.yaml", "tasks.yaml", "rows.jsonl", "rows.csv", "damaged.parquet", "empty", "eval", "model"),
    *("runs", "runs/a", "runs/a/models/v0001", "merge.yaml", "model/config.json", "new", "no/such/file"),
)


def command_of(words: str) -> click.Command:
    """The command of a verb such as `models list`."""
    found: click.Command = main
    for word in words.split():
        assert isinstance(found, click.Group)
        found = found.commands[word]
    return found


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A verb with its usual arguments, of which some are others, and with some options."""
    verb = draw(st.sampled_from(list(COMMANDS)))
    arguments = [
        draw(fuzzing.names(*NAMES)) if not word.startswith("-") and draw(st.integers(0, 3)) == 0 else word
        for word in COMMANDS[verb]
    ]
    known = [option for option in command_of(verb).params if isinstance(option, click.Option)]
    for option in draw(st.lists(st.sampled_from(known), max_size=3)) if known else []:
        if option.name in ("help", "calibrate"):  # calibration trains
            continue
        arguments.append(option.opts[0])
        if not option.is_flag:
            numbers = ["0", "1", "8", "-1", "1e3", "0.5"]
            choices = getattr(option.type, "choices", numbers)
            odd = fuzzing.names(*NAMES) if option.metavar in ("URI", "DIR", "FILE") else fuzzing.texts
            arguments.append(draw(st.sampled_from([*map(str, choices), *numbers]) | odd))
    return [*verb.split(), *arguments]


def write_workspace(model: str) -> None:
    """The files that command lines name, in the working directory."""
    shutil.copytree(model, "model")
    recipe = RECIPE | {"name": "a", "base_model": "model", "train": {"group_size": 2}, "merge": {}}
    recipe["data"] = {"tasks": [{"name": "t", "path": "rows.jsonl"}]}
    with open("recipe.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump(recipe, file)
    with open("tasks.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump(recipe["data"]["tasks"], file)
    with open("merge.yaml", "w", encoding="utf-8") as file:
        yaml.safe_dump({"merge_method": "linear", "models": [{"model": "model"}] * 2, "dtype": "x"}, file)
    texts.write_jsonl("./rows.jsonl", [ROW, ROW | {"query": "other", "id": "8"}])
    texts.write_beir("eval/t", list(texts.functions("email"))[:3])
    others = {
        "rows.csv": b"id,text\n1,a\n",
        "damaged.parquet": b"PAR1\0PAR1",
        "empty": b"",
        "model/README.md": b"---\nlicense: mit\ntags:\n- a\n---\n# A model\n",
    }
    for name, content in others.items():
        write(name, content)
    claim(Recipe.load("recipe.yaml"))
    shutil.copytree(model, "runs/a/models/v0001")


@pytest.fixture(scope="module")
def workspace(bert, tmp_path_factory) -> str:
    """A directory with the files that command lines name."""
    root = tmp_path_factory.mktemp("workspace")
    model = publish(bert, str(tmp_path_factory.mktemp("published") / "bert"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        write_workspace(model)
    return str(root)


@pytest.fixture
def without_ray(monkeypatch) -> None:
    """Connecting to Ray is refused, as where no cluster answers, even if another test has started one."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")


SMALL_FILE = 1 << 16  # others are not damaged, and shared between the examples


def copy_or_link(source: str, target: str) -> None:
    (shutil.copy2 if os.path.getsize(source) < SMALL_FILE else os.link)(source, target)


@fuzz(200, command_lines(), st.data(), uses=("workspace", "without_ray"))
def test_command_lines(command, data, workspace, without_ray):
    """Verbs that need Ray get as far as the connection to it."""
    with tempfile.TemporaryDirectory(dir=".") as folder, pytest.MonkeyPatch.context() as patch:
        shutil.copytree(workspace, folder, copy_function=copy_or_link, dirs_exist_ok=True)
        patch.chdir(folder)
        if data.draw(st.booleans(), "is a file damaged"):
            found = [os.path.join(root, name) for root, _, names in os.walk(".") for name in names]
            name = data.draw(st.sampled_from(sorted(n for n in found if os.path.getsize(n) < SMALL_FILE)))
            with open(name, "rb") as file:
                content = data.draw(fuzzing.damaged_file(name, file.read()), f"content of {name}")
            write(name, content)
        result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code in (0, 1, 2)
    assert "Traceback" not in result.output
    assert result.exit_code == 0 or "rror: " in result.stderr


MERGEKIT = {
    "merge_method": "ties",
    "base_model": {"model": "./model"},
    "models": [
        {"model": "./model", "parameters": {"weight": 0.5, "density": 0.5}},
        {"model": {"model": {"path": "./runs/a/models/v0001"}}, "parameters": {"weight": [1, 1]}},
    ],
    "slices": None,
    "parameters": {"normalize": True, "t": [{"filter": "mlp", "value": 0.5}, {"value": 1}], "lambda": 1.0},
    "tokenizer_source": "base",
    "dtype": "float32",
    "out_dtype": "bfloat16",
}


@fuzz(
    200,
    fuzzing.damaged(MERGEKIT, fuzzing.values)
    .map(lambda values: yaml.safe_dump(values).encode("utf-8", "surrogatepass"))
    .flatmap(lambda content: st.just(content) | fuzzing.damaged_bytes(content)),
    uses=("workspace",),
)
def test_damaged_files_of_mergekit(content, workspace):
    with pytest.MonkeyPatch.context() as patch:
        write("merge.yaml", content)
        path = os.path.abspath("merge.yaml")
        patch.chdir(workspace)
        with fuzzing.only_errors_for_users():
            models, _, _ = mergekit.read(path)
            assert all(isinstance(uri, str) for uri in models)


MODEL_FILES = (
    *("config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json", "README.md"),
    *("config_sentence_transformers.json", "tokenizer_config.json", "artifact.json"),
)


@fuzz(200, st.sampled_from(MODEL_FILES), st.data(), uses=("workspace",))
def test_damaged_files_of_models(name, data, workspace):
    """Everything that is read of a model before its weights, and the checks of a merge."""
    model = os.path.join(workspace, "model")
    with open(os.path.join(model, name), "rb") as file:
        content = data.draw(fuzzing.damaged_file(name, file.read()), "content")
    with tempfile.TemporaryDirectory(dir=".") as copy:
        copy = os.path.abspath(copy)
        shutil.copytree(model, copy, copy_function=copy_or_link, dirs_exist_ok=True)
        write(os.path.join(copy, name), content)
        for use in (
            directory.read_spec,
            directory.identify,
            directory.dimension_of,
            directory.license_of,
            artifacts.verify,
            lambda uri: check_inputs([model, uri], None),
            lambda uri: check_inputs([model, model], uri),
            lambda uri: shape.read(uri, None, None, Assumptions()),
        ):
            with fuzzing.only_errors_for_users():
                use(copy)
