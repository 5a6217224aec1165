"""The public Python API: its names, what it loads, and what its functions return and refuse."""

import ast
import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ray import serve as ray_serve

import boom_ray as boom
from boom_ray.recipe import Recipe
from tests import texts
from tests.conftest import recipe_values
from tests.serve.test_serve import free_port

FUNCTIONS = [
    *("diff", "drift", "embed", "evaluate", "lineage", "load", "merge", "models", "plan", "report"),
    *("reproduce", "rollback", "run", "serve", "serve_config", "status", "train", "update", "verify"),
]
TYPES = [
    *("BagsRecord", "BoomError", "ClusterError", "ConflictError", "CoreRecord", "CorpusRecord", "Drift"),
    *("EmbedResult", "EmbeddingsRecord", "EvaluationResult", "InputError", "Lineage", "LoadedModel"),
    *("MergeResult", "ModelRecord", "ModelVersion", "ModelsTable", "NotFoundError", "ProgressEvent"),
    *("Recipe", "Record", "Reproduction", "RunPlan", "RunResult", "RunStatus", "ScoreTable", "ServeHandle"),
    *("StorageError", "Task", "UpdateResult"),
]
HEAVY = ("torch", "ray", "transformers", "pandas", "pyarrow", "pydantic", "boom_ray.recipe")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_exported_names():
    assert sorted(boom.__all__) == sorted(FUNCTIONS + TYPES)
    assert set(boom.__all__) <= set(dir(boom))
    for name in FUNCTIONS:
        assert callable(getattr(boom, name)) and getattr(boom, name).__name__ == name
        assert ">>> " in getattr(boom, name).__doc__, name
    for name in TYPES:
        assert isinstance(getattr(boom, name), type)
    with pytest.raises(AttributeError, match="mergee"):
        boom.mergee  # noqa: B018


def test_type_checkers_see_the_names_that_are_exported():
    with open(boom.__file__, encoding="utf-8") as file:
        tree = ast.parse(file.read())
    (block,) = (
        node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    )
    seen = {alias.name: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"boom_ray.{module}" for name, module in boom._MODULE_OF.items()}


def test_importing_loads_nothing_heavy():
    assert python(f"import sys, boom_ray; print([m for m in {HEAVY} if m in sys.modules])").strip() == "[]"
    reading = "import sys, boom_ray; boom_ray.Recipe, boom_ray.status, boom_ray.BoomError; "
    assert python(reading + "print([m for m in ('torch', 'ray') if m in sys.modules])").strip() == "[]"


def test_a_function_is_not_replaced_by_the_subpackage_of_its_name():
    code = "import boom_ray, boom_ray.merge.methods, boom_ray.train.loss, boom_ray.embed.embed_options; "
    code += "print(boom_ray.merge.__name__, type(boom_ray.train).__name__, callable(boom_ray.embed))"
    assert python(code).split() == ["merge", "function", "True"]


def test_errors_form_one_tree():
    for name in ("InputError", "ConflictError", "NotFoundError", "StorageError", "ClusterError"):
        assert issubclass(getattr(boom, name), boom.BoomError)
    assert issubclass(boom.BoomError, ValueError)


@pytest.fixture
def recipe(qwen3, corpus_files, beir, tmp_path) -> Recipe:
    return Recipe.model_validate(recipe_values(qwen3, corpus_files, beir, str(tmp_path / "runs")))


def test_arguments_that_are_not_valid(recipe, published_qwen3, corpus_files, tmp_path):
    two, out = [published_qwen3, published_qwen3], tmp_path / "out"
    with pytest.raises(boom.InputError, match=r"method.*'multislep'"):
        boom.merge(two, out=out, method="multislep")  # type: ignore[arg-type]
    with pytest.raises(boom.InputError, match="density"):
        boom.merge(two, out=out, method="ties", density=2, base=published_qwen3)
    with pytest.raises(boom.InputError, match="models: got 1"):
        boom.merge([published_qwen3], out=out)
    with pytest.raises(boom.InputError, match=r"bag: got 3.* 1 to 2"):
        boom.train(recipe, bag=3)
    with pytest.raises(boom.InputError, match=r"core_percent(.|\n)*method"):
        boom.update(recipe, corpus_files["docstring-to-code"], core_percent=0, method="x")  # type: ignore
    with pytest.raises(boom.InputError, match=r"requirements.*old_mean > 1"):
        boom.update(recipe, corpus_files["docstring-to-code"], requirements="old_mean > 1")
    with pytest.raises(boom.InputError, match=r"dtype.*'int9'"):
        boom.embed(published_qwen3, "texts", out, dtype="int9")  # type: ignore[arg-type]
    with pytest.raises(boom.InputError, match=r"limit: got 0.*1"):
        boom.embed(published_qwen3, "texts", out, limit=0)
    with pytest.raises(boom.InputError, match=r"evaluate: .*data.*mteb"):
        boom.evaluate(published_qwen3)
    with pytest.raises(boom.InputError, match=r"max_replicas.* 0"):
        boom.serve(published_qwen3, max_replicas=0)
    with pytest.raises(boom.InputError, match=r"rows: got 5.*20"):
        boom.drift(published_qwen3, published_qwen3, "texts", rows=5)
    with pytest.raises(boom.InputError, match=r"recipe: .*Recipe\.load"):
        boom.run("recipe.yaml")  # type: ignore[arg-type]
    with pytest.raises(boom.InputError, match="model: got 3"):
        boom.load(3)  # type: ignore[arg-type]
    assert not out.exists() and not os.path.exists(recipe.root)


def test_things_that_do_not_exist(tmp_path):
    for call in (boom.status, boom.models, boom.report, boom.verify, boom.lineage, boom.Recipe.load):
        with pytest.raises(boom.NotFoundError, match="nothing-here"):
            call(tmp_path / "nothing-here")
    with pytest.raises(boom.NotFoundError, match="nothing-here"):
        boom.rollback(tmp_path / "nothing-here", "v0001")


def test_a_copied_recipe_is_validated_again(recipe, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    copied = recipe.model_copy(update={"storage": "elsewhere"})
    with pytest.raises(boom.NotFoundError, match=f"{tmp_path}/elsewhere"):
        boom.status(boom.api.arguments.checked(copied))
    with pytest.raises(boom.InputError, match="name"):
        boom.run(recipe.model_copy(update={"name": "a/b"}))


def test_a_loaded_model_encodes_with_prompts_and_dimensions(published_qwen3):
    model = boom.load(Path(published_qwen3))
    assert (model.model, model.dimensions, set(model.prompts)) == (published_qwen3, 32, {"query", "document"})
    plain, prompted = model.encode(["a text"]), model.encode(["a text"], "query")
    assert plain.shape == (1, 32) and plain.dtype == np.float32
    assert np.allclose(np.linalg.norm(plain, axis=1), 1)
    assert np.allclose(model.encode("a text"), plain[0], atol=1e-6)
    assert np.allclose(prompted, model.encode(["a text"], prompt=model.prompts["query"]), atol=1e-6)
    assert np.abs(prompted - plain).max() > 1e-3
    leading = plain[:, :8] / np.linalg.norm(plain[:, :8], axis=1, keepdims=True)
    assert np.allclose(model.encode(["a text"], dimensions=8), leading, atol=1e-6)
    with pytest.raises(boom.InputError, match=r"'qery'.*document, query"):
        model.encode(["a text"], "qery")
    with pytest.raises(boom.InputError, match=r"dimensions: got 33.*32"):
        model.encode(["a text"], dimensions=33)


def test_load_takes_the_pooling_of_a_base_model(qwen3):
    pooled = {kind: boom.load(qwen3, pooling=kind).encode("a text") for kind in ("mean", "lasttoken")}
    assert np.abs(pooled["mean"] - pooled["lasttoken"]).max() > 1e-3


@dataclass
class Project:
    """A working directory with a run of two bags, and files by the names of the example."""

    directory: str
    run: boom.RunResult
    events: list[boom.ProgressEvent]
    bags: list[str]


@pytest.fixture(scope="module")
def project(finished_run, qwen3, tmp_path_factory) -> Iterator[Project]:
    """A run that `boom_ray.run` finishes from its first bag on; the storage of its recipe is relative."""
    directory, events = tmp_path_factory.mktemp("project"), list[boom.ProgressEvent]()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        for made in ("corpus", "bags", "models/bag-1"):
            shutil.copytree(f"{finished_run.recipe.root}/{made}", f"runs/tiny/{made}")
        values = json.loads(finished_run.recipe.model_dump_json()) | {"storage": "runs"}
        Path("recipe.yaml").write_text(json.dumps(values))
        rows = [{"id": number, "text": code} for number, (_, code) in enumerate(texts.functions("email"))][
            :40
        ]
        pq.write_table(pa.Table.from_pylist(rows), "texts.parquet")
        run = boom.run(boom.Recipe.load("recipe.yaml"), progress=events.append)
        bags = [f"{run.root}/models/bag-1", f"{run.root}/models/bag-2"]
        for name, target in {"a": bags[0], "b": bags[1], "base": qwen3}.items():
            os.symlink(target, name)
        yield Project(str(directory), run, events, bags)


def test_the_example(project, monkeypatch):
    monkeypatch.chdir(project.directory)

    run = boom.run(boom.Recipe.load("recipe.yaml"))
    frame = run.scores.to_frame()
    merged = boom.merge(["a", "b"], out="m", base="base", method="multislerp", dtype="float32")
    vectors = boom.embed(run.model, "texts.parquet", "vectors", prompt_name="query")
    encoded = boom.load(run.model).encode(["how do I sort a list?"])

    assert run.model == f"{project.directory}/runs/tiny/models/v0001" and os.path.isdir(run.model)
    assert run.comparison == run.record.metrics.comparison is not None
    means = run.record.metrics.means
    assert list(frame.columns) == ["base", "bag-1", "bag-2", "merged"]
    for label in frame.columns:
        assert frame.loc["mean all", label] == means[label]["all"]["ndcg@10"]
        for task, scores in run.record.metrics.evaluation[label].items():
            assert frame.loc[task, label] == scores["ndcg@10"]

    assert merged.model == f"{project.directory}/m" and merged.space == "deltas"
    assert merged.record.config.merge.method == "multislerp"
    assert [parent.version for parent in merged.record.parents] == ["bag-1", "bag-2"]
    # The same models, base and settings as the merge of the run.
    assert merged.record.tensors == run.record.tensors
    distances = merged.distances()
    assert distances["models"] == ["a", "b"] and len(distances["all"]["norms"]) == 2
    files = merged.write_distances("distances.json")
    assert files == [f"{project.directory}/distances.json", f"{project.directory}/distances.png"]
    assert json.loads(Path("distances.json").read_text()) == json.loads(json.dumps(distances))

    assert vectors.vectors == f"{project.directory}/vectors"
    assert (vectors.record.config.rows, vectors.record.config.prompt_name) == (40, "query")
    found = vectors.to_frame().set_index("id").sort_index()
    source = pandas.read_parquet("texts.parquet").set_index("id").sort_index()
    expected = boom.load(run.model).encode(list(source["text"]), "query")
    assert np.abs(np.stack(list(found["embedding"])) - expected).max() < 1e-3
    assert encoded.shape == (1, 32)


def test_progress_goes_to_the_callback(project):
    names = {event.name for event in project.events}
    assert "bag-1" not in names and {"bag-2", "merge", "evaluate"} <= names
    for name in ("bag-2", "evaluate"):
        last = [event for event in project.events if event.name == name][-1]
        assert last.completed == last.total > 0


def test_results_and_runs_stand_for_models(project):
    of_result, of_run, of_path = (
        boom.load(model).model for model in (project.run, project.run.root, Path(project.run.model))
    )
    assert of_result == of_run == of_path == project.run.model
    events = list[boom.ProgressEvent]()
    data = boom.Recipe.load(f"{project.directory}/recipe.yaml").evaluate.data
    measured = boom.evaluate([project.run, project.bags[0]], data, progress=events.append)
    assert list(measured.to_frame().columns) == ["v0001", "bag-1"] and measured.problems == []
    assert measured.results is None and {event.name for event in events} == {"evaluate"}
    assert list(measured.scores.results["v0001"]) == ["in_domain/email", "out_of_domain/asyncio"]
    moved = boom.drift(project.run, project.run, f"{project.directory}/texts.parquet")
    assert moved.cosine == pytest.approx(1, abs=1e-5) and moved.overlap == 1


def test_the_history_of_a_run(project, tmp_path):
    run = project.run
    assert boom.status(run).state == boom.status(Path(run.root)).state == "done"
    table = boom.models(os.path.dirname(run.root))
    (version,) = table
    assert (version.run, version.version, version.model) == ("tiny", "v0001", run.model)
    assert version.is_current and version.record == run.record and len(table.tables()) == 1
    assert table.to_frame().loc[0, "digest"] == run.record.digest
    assert boom.rollback(run, "v0001") == run.model
    with pytest.raises(boom.NotFoundError, match=r"v0009.*v0001"):
        boom.rollback(run, "v0009")
    assert boom.verify(run.model) == boom.verify(run) == run.record
    assert any(line.startswith("digest: ") for line in boom.diff(*project.bags))
    lineage = boom.lineage(run)
    assert [parent.identity.version for parent in lineage.ancestor.parents] == ["bag-1", "bag-2"]
    assert len(lineage.tree().children) == 2
    page = boom.report(run, out=tmp_path / "page.html")
    assert page == f"{tmp_path}/page.html" and "v0001" in Path(page).read_text()


def test_conflicts(project, monkeypatch, beir):
    monkeypatch.chdir(project.directory)
    recipe = boom.Recipe.load("recipe.yaml")
    other = recipe.model_copy(update={"merge": recipe.merge.model_copy(update={"method": "linear"})})
    with pytest.raises(boom.ConflictError, match=r"merge\.method: multislerp .*linear"):
        boom.run(other)
    again = recipe.data.tasks[0]
    with pytest.raises(boom.ConflictError, match=again.name):
        boom.update(recipe, again)
    with pytest.raises(boom.InputError, match="new_mean"):
        boom.update(recipe, boom.Task(name="new", path=again.path), requirements={"new_mean": 1})
    with pytest.raises(boom.NotFoundError, match="v0007"):
        boom.update(recipe, boom.Task(name="new", path=again.path), parent="v0007")


def test_serve_returns_a_handle(project, tmp_path):
    port = free_port()
    with boom.serve(project.run, port=port, max_replicas=1) as endpoint:
        assert endpoint.url == f"http://127.0.0.1:{port}" and endpoint.models == [project.run.model]
        body = json.dumps({"input": ["a text"]}).encode()
        request = urllib.request.Request(
            f"{endpoint.url}/v1/embeddings", body, {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            (vector,) = [row["embedding"] for row in json.load(answer)["data"]]
        assert np.abs(vector - boom.load(project.run).encode("a text")).max() < 1e-4
        # A switch keeps the address.
        assert boom.serve(project.run, port=port + 1).url == endpoint.url
    assert not ray_serve.status().applications
    path = boom.serve_config(project.run, tmp_path / "serve.yaml", port=9000)
    assert path == f"{tmp_path}/serve.yaml"
    assert yaml.safe_load(Path(path).read_text())["http_options"]["port"] == 9000
