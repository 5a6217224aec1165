"""The command line: every command does its work and prints the values; a user's mistake is one message."""

import glob
import json
import os
import re
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner, Result
from safetensors.numpy import load_file
from sentence_transformers import SentenceTransformer

from boom_ray import artifacts
from boom_ray.cli import main
from boom_ray.runs import versions
from tests.conftest import copy_run, done, recipe_values

ROOT = os.path.dirname(os.path.dirname(__file__))
COMMANDS = (
    *("drift", "embed", "evaluate", "lineage", "merge", "models", "plan", "report", "reproduce"),
    *("run", "serve", "status", "train", "update", "verify"),
)


def boom_ray(*arguments: str) -> Result:
    """Run a command in this process."""
    return CliRunner().invoke(main, arguments)


def assert_refused(result: Result, pattern: str, exit_code: int = 1) -> None:
    """The command ended with one error message that matches, and without a traceback."""
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    assert result.exit_code == exit_code and result.stderr.lower().count("error:") == 1, result.output
    assert re.search(pattern, result.stderr, re.DOTALL), result.output


def digest_in(output: str) -> str:
    """The digest that a command printed last."""
    return re.findall(r"digest (\w+)", output)[-1]


@pytest.fixture
def recipe_file(tmp_path, minilm, corpus_files, beir):
    """Writes a recipe; keyword arguments replace its sections."""

    def write(**sections):
        values = recipe_values(minilm, corpus_files, beir, str(tmp_path / "runs")) | sections
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(values))
        return str(path)

    return write


class Run(NamedTuple):
    """A run with v0001 and v0002: its recipe, its URI, and what `boom-ray run` and `update` printed."""

    recipe: str
    root: str
    output: str
    update_output: str


@pytest.fixture(scope="module")
def run(finished_run, finished_update, tmp_path_factory) -> Run:
    home = str(tmp_path_factory.mktemp("cli"))
    recipe = copy_run(finished_update.recipe, f"{home}/runs")
    return Run(f"{home}/recipe.yaml", recipe.root, finished_run.output, finished_update.output)


def trained_steps(run: Run, bag: str) -> int:
    """Steps of the training of a bag, by its record."""
    return artifacts.read_record(f"{run.root}/models/{bag}").metrics.training.step


def test_every_command_is_listed_explains_itself_and_has_a_script():
    assert tuple(sorted(main.commands)) == COMMANDS
    for command in COMMANDS:
        assert command in done("--help") and f"Usage: main {command}" in done(command, "--help")
    scripts = {os.path.basename(path) for path in glob.glob(os.path.join(ROOT, "jobs", "*.py"))}
    assert scripts - {"quickstart_corpus.py", "quickstart_update.py"} == {f"{name}.py" for name in COMMANDS}


def test_run_prints_the_digest_of_the_merged_model(run):
    records = {name: artifacts.verify(f"{run.root}/models/{name}") for name in ("bag-1", "bag-2", "v0001")}
    assert digest_in(run.output) == records["v0001"].digest
    assert re.search(r"model:   /\S+/tiny/models/v0001  \(digest \w+\)$", run.output.strip())
    parents = [parent.digest for parent in records["v0001"].parents]
    assert parents == [records["bag-1"].digest, records["bag-2"].digest]


def test_train_trains_only_the_missing_bags(run):
    before = artifacts.read_record(f"{run.root}/models/bag-2").created
    assert f"model: {run.root}/models/bag-2" in done("train", run.recipe, "--bag", "2")
    assert artifacts.read_record(f"{run.root}/models/bag-2").created == before


def test_plan_counts_the_rows_and_steps_that_the_run_trained(run):
    output = done("plan", run.recipe, "--gpus", "2", "--baseline")
    steps = {bag: trained_steps(run, bag) for bag in ("bag-1", "bag-2")}
    own = r"50 % of every task, 40 % of docstring-to-package, learning_rate 3e-05, seed 5"
    for bag, sample in (("bag-1", own), ("bag-2", "100 % of every task")):
        rows = pq.read_metadata(f"{run.root}/bags/{bag}.parquet").num_rows
        line = rf"^{bag}: {sample}, {rows} rows, .* {steps[bag]} steps of "
        assert re.search(line, output, re.M), output
    assert "schedule: 2 cpu, 4 ranks" in output, "a rank takes half a CPU"
    cost = rf"^cost: 1\.5x one pass over the corpus of \d+ rows, {sum(steps.values())} steps"
    assert re.search(cost, output, re.M), output


def test_merge_with_equal_weights_is_the_mean(run, tmp_path):
    bags = [f"{run.root}/models/{bag}" for bag in ("bag-1", "bag-2")]
    output = done("merge", *bags, "--out", str(tmp_path / "m"), "--method", "linear", "--dtype", "float32")
    assert digest_in(output) == artifacts.verify(str(tmp_path / "m")).digest
    first, second, merged = (load_file(f"{uri}/model.safetensors") for uri in [*bags, str(tmp_path / "m")])
    for name, tensor in merged.items():
        np.testing.assert_allclose(tensor, (first[name] + second[name]) / 2, atol=1e-6, err_msg=name)


def test_update_publishes_the_next_version(run):
    record = artifacts.verify(f"{run.root}/models/v0002")
    assert digest_in(run.update_output) == record.digest and record.version == "v0002"
    assert artifacts.read_record(f"{run.root}/models/v0001").digest in [one.digest for one in record.parents]


def test_models_are_listed_compared_and_rolled_back(run):
    for listed in (done("models", "list", run.root), done("models", run.root)):
        assert re.search(r"v0001 +\d{4}", listed) and re.search(r"v0002 +\(current\)", listed), listed
    digests = [artifacts.read_record(f"{run.root}/models/{name}").digest for name in ("v0001", "v0002")]
    compared = done("models", "diff", f"{run.root}/models/v0001", f"{run.root}/models/v0002")
    assert f"digest: {digests[0]} -> {digests[1]}" in compared.splitlines()
    assert done("models", "rollback", run.root, "v0001") == "current: v0001\n"
    assert versions.current(run.root) == "v0001"
    assert_refused(boom_ray("models", "rollback", run.root, "v0009"), "v0009.*v0001, v0002")
    assert done("models", "rollback", run.root, "v0002") == "current: v0002\n"
    assert versions.current(run.root) == "v0002"
    assert_refused(boom_ray("models", "rolback", run.root, "v0001"), "v0001", exit_code=2)


def test_status_reports_a_finished_run(run, tmp_path):
    output = done("status", run.root, "--json", str(tmp_path / "status.json"))
    assert output.splitlines()[0] == f"run: done: {run.root}"
    assert re.search(rf"^bag-1: done: .*{trained_steps(run, 'bag-1')} steps", output, re.M), output
    with open(tmp_path / "status.json", encoding="utf-8") as file:
        content = json.load(file)
    assert (content["state"], content["root"]) == ("done", run.root)


def test_lineage_ends_at_the_corpus(run):
    output = done("lineage", f"{run.root}/models/v0001")
    assert artifacts.read_record(f"{run.root}/corpus").digest in output
    assert "bag-1" in output and "bag-2" in output


def test_report_writes_a_page_about_a_version(run, tmp_path):
    out = str(tmp_path / "page.html")
    assert done("report", run.root, "--version", "v0001", "--out", out) == f"report: {out}\n"
    with open(out, encoding="utf-8") as file:
        page = file.read()
    assert artifacts.read_record(f"{run.root}/models/v0001").digest in page


@pytest.mark.slow
def test_reproduce_makes_the_same_digest(run, tmp_path):
    output = done("reproduce", f"{run.root}/models/v0001", "--scratch", str(tmp_path))
    assert artifacts.read_record(f"{run.root}/models/v0001").digest in output


def test_reproduce_needs_a_version_of_a_run(published_minilm):
    storage = os.path.dirname(os.path.dirname(published_minilm))
    assert_refused(boom_ray("reproduce", published_minilm), re.escape(storage))


def test_evaluate_prints_and_writes_the_metrics(run, beir, tmp_path):
    models = [f"{run.root}/models/{name}" for name in ("bag-1", "v0001")]
    out = str(tmp_path / "metrics.json")
    output = done("evaluate", *models, "--data", beir, "--json", out)
    with open(out, encoding="utf-8") as file:
        content = json.load(file)
    assert list(content["evaluation"]) == ["bag-1", "v0001"]
    for task in ("in_domain/email", "out_of_domain/asyncio"):
        scores = [content["evaluation"][name][task]["ndcg@10"] for name in ("bag-1", "v0001")]
        assert all(0 < score <= 1 for score in scores)
        assert re.search(rf"{task}.*{scores[0]:.3f}.*{scores[1]:.3f}", output), output
        assert f"{task}: 20 queries, 20 documents, 20 judgements\n" in output
        assert content["counts"][task] == {"queries": 20, "documents": 20, "judgements": 20}
    mean = np.mean([scores["ndcg@10"] for scores in content["evaluation"]["v0001"].values()])
    assert content["means"]["v0001"]["all"]["ndcg@10"] == pytest.approx(mean)


@pytest.fixture(scope="module")
def text_file(tmp_path_factory) -> str:
    """Thirty texts with ids."""
    path = str(tmp_path_factory.mktemp("texts") / "texts.parquet")
    rows = [f"text number {index}" for index in range(30)]
    pq.write_table(pa.table({"id": [f"t{index}" for index in range(30)], "text": rows}), path)
    return path


def test_embed_writes_the_vectors_of_sentence_transformers(run, text_file, tmp_path):
    model, out = f"{run.root}/models/bag-1", str(tmp_path / "vectors")
    output = done("embed", model, text_file, out, "--precision", "float32")
    assert digest_in(output) == artifacts.verify(out).digest and "30 rows" in output
    parts = [pq.read_table(path) for path in glob.glob(f"{out}/*.parquet")]
    made = pa.concat_tables(parts).sort_by("id")
    rows = pq.read_table(text_file).sort_by("id")
    expected = SentenceTransformer(model, device="cpu").encode(rows["text"].to_pylist())
    assert made["id"].to_pylist() == rows["id"].to_pylist()
    np.testing.assert_allclose(np.stack(made["embedding"].to_numpy()), expected, atol=1e-5)


def test_drift_of_a_model_to_itself_is_none(run, text_file):
    model = f"{run.root}/models/bag-1"
    output = done("drift", model, model, "--data", text_file)
    assert "30 texts" in output and "1.0000" in output and "can stay" in output


def test_serve_writes_a_configuration(published_minilm, tmp_path):
    out = tmp_path / "serve.yaml"
    done("serve", published_minilm, "--port", "8123", "--device", "cpu", "--config-out", str(out))
    content = yaml.safe_load(out.read_text())
    assert content["http_options"] == {"host": "127.0.0.1", "port": 8123}
    encoder, ingress = content["applications"]
    assert encoder["args"]["model"] == published_minilm and ingress["args"]["models"] == [published_minilm]
    assert (encoder["route_prefix"], ingress["route_prefix"]) == (None, "/")


def test_verify_prints_what_it_checked(published_minilm):
    record = artifacts.read_record(published_minilm)
    output = done("verify", published_minilm)
    assert digest_in(output) == record.digest and f"{len(record.files)} files" in output


def test_a_script_of_jobs_is_the_command_of_its_name(published_minilm, tmp_path):
    script = os.path.join(ROOT, "jobs", "verify.py")
    environment = {**os.environ, "PYTHONPATH": ROOT}
    one, other = (
        subprocess.run(
            [sys.executable, script, uri], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        for uri in (published_minilm, "nowhere")
    )
    assert one.returncode == 0 and digest_in(one.stdout) == artifacts.read_record(published_minilm).digest
    assert other.returncode == 1 and "nowhere" in other.stderr and "Traceback" not in other.stderr


def test_a_typo_in_the_recipe(recipe_file, tmp_path):
    assert_refused(boom_ray("run", recipe_file(trian={})), r"trian: .*'train'")
    assert not (tmp_path / "runs").exists()


def test_a_missing_recipe_and_a_missing_model():
    assert_refused(boom_ray("run", "nowhere.yaml"), r"nowhere\.yaml")
    assert_refused(boom_ray("verify", "nowhere"), "nowhere")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "http://127.0.0.1:8265"])
def test_a_cluster_that_does_not_answer(recipe_file, address):
    environment = {**os.environ, "RAY_ADDRESS": address}
    command = [sys.executable, "-m", "boom_ray.cli", "run", recipe_file()]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 1 and "Traceback" not in run.stderr
    assert run.stderr.count("error:") == 1 and address in run.stderr and "RAY_ADDRESS" in run.stderr


def test_a_missing_data_file(recipe_file, tmp_path):
    data = {"tasks": [{"name": "t", "path": "nowhere.jsonl"}]}
    assert_refused(boom_ray("train", recipe_file(data=data)), r"nowhere\.jsonl")
    assert not os.path.exists(tmp_path / "runs" / "tiny" / "corpus")


def test_a_bad_line(recipe_file, tmp_path, corpus_files):
    shutil.copy(corpus_files["docstring-to-code"], tmp_path / "t.jsonl")
    with open(tmp_path / "t.jsonl", "a") as file:
        file.write("{bad\n")
    data = {"tasks": [{"name": "t", "path": "t.jsonl"}], "max_bad_fraction": 0.0}
    assert_refused(boom_ray("train", recipe_file(data=data)), r"t\.jsonl:4\d")
    assert not os.path.exists(tmp_path / "runs" / "tiny" / "corpus")


def test_a_truncated_shard(ray_cluster, tmp_path, published_minilm):
    damaged = str(tmp_path / "damaged")
    shutil.copytree(published_minilm, damaged)
    os.truncate(os.path.join(damaged, "model.safetensors"), 10_000_000)
    assert_refused(boom_ray("verify", damaged), r"model\.safetensors: 10000000 bytes")
    out = tmp_path / "merged" / "out"
    assert_refused(boom_ray("merge", published_minilm, damaged, "--out", str(out)), r"model\.safetensors")
    assert os.listdir(tmp_path / "merged") == []


def test_weights_that_are_no_numbers_and_a_bag_that_does_not_exist(recipe_file):
    refused = boom_ray("merge", "a", "b", "--out", "c", "--weights", "heavy")
    assert_refused(refused, "'heavy'.*equal, size", exit_code=2)
    assert_refused(boom_ray("train", recipe_file(), "--bag", "9"), "9.*1 to 2")
