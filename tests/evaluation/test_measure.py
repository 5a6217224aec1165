"""Evaluation: the numbers of the definitions, a mean per group, and nothing measured twice."""

import math
import os
from statistics import fmean

import numpy as np
import pytest

from boom_ray.errors import BoomError
from boom_ray.evaluation import compare, tables
from boom_ray.evaluation import measure as evaluate
from boom_ray.evaluation.beir import read_beir
from boom_ray.evaluation.measure import Measurement, Protocol, Subject
from boom_ray.model import directory
from boom_ray.runs.scores import mean_scores
from tests import texts

pytestmark = pytest.mark.usefixtures("ray_cluster")


def by_definition(path: str, task: str) -> dict[str, float]:
    """The three metrics for one relevant document per query, by their textbook formulas."""
    beir = read_beir(task)
    encoder = directory.load_encoder(path)
    documents = encoder.encode(list(beir["corpus"].values()))
    queries = encoder.encode(list(beir["queries"].values()), encoder.spec.prompts.get("query", ""))
    ranks = []
    for query, scores in zip(beir["queries"], queries @ documents.T, strict=True):
        (right,) = beir["relevant_docs"][query]
        target = list(beir["corpus"]).index(right)
        ranks.append(1 + int((scores > scores[target] + 1e-7).sum()))
    return {
        "ndcg@10": float(np.mean([1 / math.log2(rank + 1) if rank <= 10 else 0 for rank in ranks])),
        "mrr@10": float(np.mean([1 / rank if rank <= 10 else 0 for rank in ranks])),
        "recall@100": float(np.mean([rank <= 100 for rank in ranks])),
    }


def test_metrics_are_those_of_the_definitions_and_results_are_kept(published_minilm, beir, tmp_path):
    cache = str(tmp_path / "cache")
    first = evaluate.evaluate([Subject("m", published_minilm)], Protocol(beir), cache)
    assert list(first["m"]) == ["in_domain/email", "out_of_domain/asyncio"]
    for task, scores in first["m"].items():
        expected = by_definition(published_minilm, os.path.join(beir, task))
        assert scores == pytest.approx(expected, abs=1e-6) and 0.2 < scores["ndcg@10"] <= 1
    written = {name: os.stat(tmp_path / "cache" / name).st_mtime_ns for name in os.listdir(cache)}
    assert (
        evaluate.evaluate([Subject("other label", published_minilm)], Protocol(beir), cache)["other label"]
        == first["m"]
    )
    assert written == {name: os.stat(tmp_path / "cache" / name).st_mtime_ns for name in os.listdir(cache)}


def test_means_are_per_group_and_over_all():
    scores = {"in/a": {"ndcg@10": 0.2}, "in/b": {"ndcg@10": 0.4}, "out/c": {"ndcg@10": 0.9}}
    means = {group: values["ndcg@10"] for group, values in mean_scores(scores).items()}
    assert means == pytest.approx({"in": 0.3, "out": 0.9, "all": 0.5})
    table = tables.markdown_table({"base": scores, "merged": scores}).splitlines()
    assert table[0] == "| ndcg@10 | base | merged |" and table[-1] == "| mean all | 0.500 | 0.500 |"


def test_tasks_of_different_types_have_means_of_their_main_scores():
    search = {"ndcg@10": 0.2, "mrr@10": 0.1}
    scores = {"in/a": search, "in/b": {"ndcg@10": 0.4, "mrr@10": 0.3}, "out/c": {"accuracy": 0.9}}
    means = mean_scores(scores)
    assert means["in"] == pytest.approx({"ndcg@10": 0.3, "mrr@10": 0.2}) and means["out"] == {"accuracy": 0.9}
    assert means["all"] == pytest.approx({"main score": 0.5})
    table = tables.markdown_table({"base": scores}).splitlines()
    assert table[0] == "| main score | base |" and table[4] == "| out/c | 0.900 |"
    assert mean_scores({}) == {}


def test_without_queries_there_is_no_interval_and_no_verdict():
    def models(*scores: float) -> dict[str, Measurement]:
        search = Measurement({"ndcg@10": fmean(scores)}, {f"q{n}": score for n, score in enumerate(scores)})
        return {"in/a": search, "in/b": Measurement({"map": 0.5}, {})}

    found = compare.compare({"ours": models(0.8, 0.9, 0.7), "theirs": models(0.1, 0.2, 0.1)})
    assert found.metric == "main score" and found.tasks["in/a"].verdict == "better"
    for one, queries in ((found.tasks["in/b"], 0), (found.means["all"], 3)):
        assert (one.low, one.high, one.verdict, one.queries) == (None, None, "unknown", queries)
    assert found.means["in"].ours == pytest.approx(0.65)
    assert "-" in [cell for column in compare.table(found).columns for cell in column.cells]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("corpus.jsonl", "{", "not in BEIR format"),
        ("queries.jsonl", '{"text": "no id"}', "not in BEIR format: KeyError: '_id'"),
        ("qrels/test.tsv", "q0\td0\n", "not in BEIR format"),
    ],
)
def test_a_task_that_is_not_beir_is_named(tmp_path, name, content, message):
    task = texts.write_beir(str(tmp_path / "t"), list(texts.functions("email"))[:3])
    with open(os.path.join(task, name), "w") as file:
        file.write(content)
    with pytest.raises(BoomError, match=message):
        read_beir(task)


def test_a_directory_without_tasks_is_refused(tmp_path):
    with pytest.raises(BoomError, match="no BEIR directory"):
        evaluate.find_tasks(str(tmp_path))


def test_a_bad_task_reaches_the_caller_as_one_message(published_minilm, tmp_path):
    task = texts.write_beir(str(tmp_path / "t"), list(texts.functions("email"))[:3])
    with open(os.path.join(task, "queries.jsonl"), "w") as file:
        file.write("{")
    with pytest.raises(BoomError, match="not in BEIR format"):
        evaluate.evaluate([Subject("m", published_minilm)], Protocol(task))
