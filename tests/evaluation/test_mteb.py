"""Tasks measured by mteb have the scores of mteb itself, and its result files are found again."""

import json
import os
import shutil
from typing import Any

import mteb
import pytest
from click.testing import CliRunner
from datasets import Dataset, DatasetDict
from mteb.abstasks import AbsTaskClassification, AbsTaskClustering, AbsTaskRetrieval, AbsTaskSTS
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from sentence_transformers import SentenceTransformer

from boom_ray import artifacts
from boom_ray.cli import main
from boom_ray.errors import InputError
from boom_ray.evaluation import local_run, local_tasks, mteb_run, mteb_tasks
from boom_ray.evaluation.beir import read_beir
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, Subject
from boom_ray.model import adapter, files
from boom_ray.recipe import Lora
from boom_ray.runs.scores import MAIN_SCORE, main_metric, main_score
from tests import texts

pytestmark = pytest.mark.usefixtures("ray_cluster")
PACKAGES = ("email", "json", "http", "ipaddress")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> dict[str, Any]:
    """One local task of each type, at `root`, and the rows they were written from."""
    root = tmp_path_factory.mktemp("tasks")
    by_package = {package: list(texts.functions(package)) for package in PACKAGES}
    pairs = [pair for found in by_package.values() for pair in found[:12]]
    labelled = [{"text": t, "label": p} for p, found in by_package.items() for t, _ in found[:12]]
    ranking = [
        {"query": text, "positive": [code], "negative": [c for _, c in pairs[:18] if c != code]}
        for text, code in pairs[:18:2]
    ]
    similar = [
        {"sentence1": text, "sentence2": pairs[number - number % 2][1], "score": 5.0 - 4 * (number % 2)}
        for number, (text, _) in enumerate(pairs)
    ]
    texts.write_beir(str(root / "in" / "beir"), pairs)
    texts.write_jsonl(str(root / "in" / "ranking" / "test.jsonl"), ranking)
    texts.write_jsonl(str(root / "in" / "pairs" / "test.jsonl"), similar)
    texts.write_jsonl(str(root / "out" / "classes" / "train.jsonl"), labelled[::2])
    texts.write_jsonl(str(root / "out" / "classes" / "test.jsonl"), labelled[1::2])
    os.makedirs(root / "out" / "clusters")
    Dataset.from_list(labelled).to_parquet(str(root / "out" / "clusters" / "test.parquet"))
    return {"root": str(root), "ranking": ranking, "pairs": similar, "labelled": labelled}


def metadata(name: str, kind: str, main_score: str) -> mteb.TaskMetadata:
    return mteb.TaskMetadata(
        name=name,
        type=kind,
        main_score=main_score,
        description="written by the test",
        dataset={"path": "-", "revision": "-"},
        eval_langs=["eng-Latn"],
    )


class WithData:
    """A task whose data is set by the test."""

    def load_data(self, num_proc: int | None = None, **options: Any) -> None:
        self.data_loaded = True


def retrieval_data(queries, corpus, relevant, ranked=None) -> Any:
    """The data of a retrieval task, as mteb represents it."""
    columns = ({"id": list(found), "text": list(found.values())} for found in (queries, corpus))
    query_rows, documents = map(Dataset.from_dict, columns)
    split = {"queries": query_rows, "corpus": documents, "relevant_docs": relevant, "top_ranked": ranked}
    return {"default": {"test": split}}


def scores_of_mteb(data: dict[str, Any], model: str) -> dict[str, float]:
    """The oracle: mteb alone, on tasks written as in its documentation, with sentence-transformers."""
    rows, ranking = data["labelled"], data["ranking"]
    numbers = {package: number for number, package in enumerate(sorted(PACKAGES))}
    beir = read_beir(f"{data['root']}/in/beir")
    lists = {f"q{i}": row["positive"] + row["negative"] for i, row in enumerate(ranking)}

    class Beir(WithData, AbsTaskRetrieval):
        metadata = metadata("Beir", "Retrieval", "ndcg_at_10")
        dataset = retrieval_data(
            beir["queries"],
            beir["corpus"],
            {query: dict.fromkeys(found, 1) for query, found in beir["relevant_docs"].items()},
        )

    class Ranked(WithData, AbsTaskRetrieval):
        metadata = metadata("Ranked", "Reranking", "map_at_1000")
        dataset = retrieval_data(
            {f"q{i}": row["query"] for i, row in enumerate(ranking)},
            {f"{query}.{j}": text for query, found in lists.items() for j, text in enumerate(found)},
            {query: {f"{query}.0": 1} for query in lists},
            {query: [f"{query}.{j}" for j in range(len(found))] for query, found in lists.items()},
        )

    class Pairs(WithData, AbsTaskSTS):
        metadata = metadata("Pairs", "STS", "cosine_spearman")
        dataset = DatasetDict(test=Dataset.from_list(data["pairs"]))

    class Classes(WithData, AbsTaskClassification):
        metadata = metadata("Classes", "Classification", "accuracy")
        dataset = DatasetDict(
            train=Dataset.from_list([row | {"label": numbers[row["label"]]} for row in rows[::2]]),
            test=Dataset.from_list([row | {"label": numbers[row["label"]]} for row in rows[1::2]]),
        )

    class Clusters(WithData, AbsTaskClustering):
        metadata = metadata("Clusters", "Clustering", "v_measure")
        max_fraction_of_documents_to_embed = None
        dataset = DatasetDict(
            test=Dataset.from_list(
                [{"sentences": row["text"], "labels": numbers[row["label"]]} for row in rows]
            )
        )

    expected = ["in/beir", "in/ranking", "in/pairs", "out/classes", "out/clusters"]
    found = mteb.evaluate(
        SentenceTransformer(model, device="cpu"),
        [Beir(), Ranked(), Pairs(), Classes(), Clusters()],
        cache=None,
        show_progress_bar=False,
    )
    return {name: result.get_score() for name, result in zip(expected, found.task_results, strict=True)}


def measured_by_mteb(data: dict[str, Any], model: str, results: str) -> dict[str, float]:
    tasks = mteb_run.through_mteb(local_tasks.find(data["root"]))
    problems: list[str] = []
    found = measure([Subject("m", model)], tasks, EvaluationProtocol(), results, problems)
    assert problems == []
    return {task: scores[MAIN_SCORE] for task, scores in scores_of(found)["m"].items()}


@pytest.fixture(scope="module")
def measured(data, published_minilm, tmp_path_factory) -> tuple[dict[str, float], str]:
    """The scores of a published model, and the directory of their files."""
    results = str(tmp_path_factory.mktemp("results"))
    return measured_by_mteb(data, published_minilm, results), results


def test_every_type_of_task_has_the_score_of_mteb_alone(data, measured, published_minilm):
    scores, _ = measured
    expected = scores_of_mteb(data, published_minilm)
    assert set(scores) == set(expected)
    assert scores == pytest.approx(expected, abs=1e-6)
    assert all(0.1 < score < 1 for score in scores.values()), "neither trivial nor perfect"


def test_the_encoder_of_a_run_has_the_scores_of_mteb(data, measured, published_minilm):
    scores, _ = measured
    tasks, subjects = find_tasks(data["root"]), [Subject("m", published_minilm)]
    found = scores_of(measure(subjects, tasks, EvaluationProtocol()))["m"]
    rounded = 1e-5  # by mteb, for retrieval
    assert {name: main_score(one) for name, one in found.items()} == pytest.approx(scores, abs=rounded)
    assert main_metric(found) == MAIN_SCORE
    metrics = [next(iter(one)) for one in found.values()]
    assert metrics == ["ndcg@10", "spearman", "map", "accuracy", "v-measure"]


def test_results_are_files_of_mteb_and_are_not_measured_again(data, measured, published_minilm):
    scores, results = measured
    digest = artifacts.read_record(published_minilm).digest
    folder = f"{results}/results/local__test-v0001/{digest}"
    assert {f"{name.replace('/', '__')}.json" for name in scores} < set(os.listdir(folder))
    with open(f"{folder}/model_meta.json") as file:
        meta = json.load(file)
    assert meta["name"] == "local/test-v0001" and meta["revision"] == digest
    assert meta["embed_dim"] == 384 and meta["n_parameters"] == 22_713_216 and meta["max_tokens"] == 128
    read = mteb.ResultCache(results).load_results(require_model_meta=True)
    (model,) = read.model_results
    assert {result.task_name: result.get_score() for result in model.task_results} == pytest.approx(
        {name.replace("/", "__"): score for name, score in scores.items()}, abs=1e-6
    )

    before = {name: os.stat(f"{folder}/{name}").st_mtime_ns for name in os.listdir(folder)}
    assert measured_by_mteb(data, published_minilm, results) == pytest.approx(scores, abs=1e-6)
    assert before == {name: os.stat(f"{folder}/{name}").st_mtime_ns for name in os.listdir(folder)}


def test_one_call_measures_both_kinds_of_tasks_with_one_cache(data, published_minilm, tmp_path):
    found = {task.name: task for task in local_tasks.find(data["root"])}
    tasks = [
        local_run.LocalEvaluationTask("ours", found["in/beir"]),
        *mteb_run.through_mteb([found["in/pairs"]]),
    ]
    subjects = [Subject("m", published_minilm, hub_name="organization/m")]
    # Shorter texts are an experiment in mteb's layout, as results of the model with other settings.
    protocol, cache = EvaluationProtocol(max_length=8), str(tmp_path)
    measured = measure(subjects, tasks, protocol, cache)["m"]
    assert [next(iter(one.scores)) for one in measured.values()] == ["ndcg@10", MAIN_SCORE]
    files = {os.path.join(folder, name) for folder, _, names in os.walk(cache) for name in names}
    (result,) = [file for file in files if file.endswith("/in__pairs.json")]
    digest = artifacts.read_record(published_minilm).digest
    assert os.path.dirname(result).startswith(f"{cache}/results/organization__m/{digest}/experiments/")
    assert len([file for file in files if os.path.dirname(file) == cache]) == 1
    before = {file: os.stat(file).st_mtime_ns for file in files}
    again = measure(subjects, tasks, protocol, cache)["m"]
    assert again["ours"] == measured["ours"]
    assert again["in/pairs"].scores == pytest.approx(measured["in/pairs"].scores, abs=1e-6), "mteb rounds"
    assert before == {file: os.stat(file).st_mtime_ns for file in files}


def test_a_query_template_contains_the_instruction_of_each_task(published_minilm):
    encoder = SentenceTransformerEncoderWrapper(SentenceTransformer(published_minilm, device="cpu"))
    prompts = mteb_run.prompts_for(
        encoder, mteb.get_task("AskUbuntuDupQuestions"), "Instruct: {instruction}\nQuery:{query}"
    )
    prompt = "Instruct: Retrieve duplicate questions from AskUbuntu forum\nQuery:"
    assert prompts == {"Reranking": prompt, "Reranking-query": prompt, "Reranking-document": ""}


def test_names_are_those_of_benchmarks_and_tasks():
    assert len(mteb_tasks.named(("MTEB(eng, v2)", "STSBenchmark", "STS12"))) == 41, "without repetition"
    with pytest.raises(InputError, match=r"STSBenchmrk.*Did you mean: 'STSBenchmark'"):
        mteb_tasks.named(("STSBenchmrk",))
    with pytest.raises(InputError, match=r"STS17 .* 1 .* 11 "):
        mteb_tasks.named(("MTEB(eng, v2)", "STS17"))


def test_one_table_for_all_tasks_and_an_error_for_missing_data(data, measured, published_minilm, tmp_path):
    scores, results = measured
    arguments = ["evaluate", published_minilm, "--data", data["root"], "--mteb", "STSBenchmark"]
    arguments += ["--results", results, "--json", str(tmp_path / "all.json")]
    outcome = CliRunner().invoke(main, arguments)
    assert (
        outcome.exit_code == 1 and "minilm on STS/STSBenchmark: its data, mteb/stsbenchmark" in outcome.output
    )
    assert "HF_TOKEN" in outcome.output
    with open(tmp_path / "all.json") as file:
        found = json.load(file)["evaluation"]["minilm"]
    assert {name: values["main score"] for name, values in found.items()} == pytest.approx(scores, abs=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            [{"text": "a", "lable": "b"}],
            r"test.jsonl: columns lable text; expected query positive negative, or",
        ),
        (
            [{"text": "a", "label": "b"}, {"text": 3, "label": "b"}],
            r"test.jsonl:2: text: Input should be a valid",
        ),
        ([{"query": "a", "positive": [], "negative": ["b"]}], r"test.jsonl:1: positive: List should have"),
    ],
)
def test_a_file_with_wrong_columns_is_named(tmp_path, rows, message):
    texts.write_jsonl(str(tmp_path / "t" / "test.jsonl"), rows)
    with pytest.raises(InputError, match=message):
        mteb_tasks.local(*local_tasks.find(str(tmp_path))).load_data()


def test_an_adapter_of_a_base_model_on_an_object_store_is_refused_by_name(data, published_minilm, tmp_path):
    target = str(tmp_path / "adapter")
    kept_out = shutil.ignore_patterns("*.safetensors", "artifact.json")
    shutil.copytree(published_minilm, target, ignore=kept_out)
    os.rename(f"{target}/config.json", f"{target}/{files.ADAPTED_CONFIG}")
    adapter.write_config(target, Lora(), ["encoder.layer.0.attention.self.query"], "s3://bucket/base")
    task = mteb_run.through_mteb(local_tasks.find(data["root"]))[0]
    with pytest.raises(InputError, match=r"an adapter of s3://bucket/base.* Measure the merged model"):
        task.load(Subject("adapter", target), EvaluationProtocol())
