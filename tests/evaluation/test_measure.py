"""Scores of local tasks agree with their definitions, are averaged per group, and are cached."""

import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from boom_ray.cli import main
from boom_ray.errors import InputError, NotFoundError
from boom_ray.evaluation import compare, spread, tables
from boom_ray.evaluation.beir import read_beir
from boom_ray.evaluation.measure import find_tasks, measure, scores_of
from boom_ray.evaluation.protocol import EvaluationProtocol, EvaluationTask, Measurement, Subject
from boom_ray.evaluation.slots import Slots
from boom_ray.model import directory
from boom_ray.recipe.execution import EvaluateExecution
from boom_ray.runs.scores import mean_scores
from tests import texts

needs_ray = pytest.mark.usefixtures("ray_cluster")


def by_definition(path: str, task: str) -> dict[str, float]:
    """The three metrics for one relevant document per query, by their textbook formulas."""
    beir = read_beir(task)
    encoder = directory.load_encoder(path)
    documents = encoder.encode(list(beir["corpus"].values()))
    queries = encoder.encode(list(beir["queries"].values()), encoder.spec.prompts.get("query", ""))
    ranks = []
    for query, scores in zip(beir["queries"], queries @ documents.T, strict=True):
        (relevant,) = beir["relevant_docs"][query]
        target = list(beir["corpus"]).index(relevant)
        ranks.append(1 + int((scores > scores[target] + 1e-7).sum()))
    return {
        "ndcg@10": float(np.mean([1 / math.log2(rank + 1) if rank <= 10 else 0 for rank in ranks])),
        "mrr@10": float(np.mean([1 / rank if rank <= 10 else 0 for rank in ranks])),
        "recall@100": float(np.mean([rank <= 100 for rank in ranks])),
    }


def modified(directory: str) -> dict[str, int]:
    """The modification time of every file, by name."""
    return {name: os.stat(os.path.join(directory, name)).st_mtime_ns for name in os.listdir(directory)}


@needs_ray
def test_metrics_match_their_definitions_and_results_are_cached(published_minilm, beir, tmp_path):
    cache, protocol, tasks = str(tmp_path / "cache"), EvaluationProtocol(), find_tasks(beir)
    measured = measure([Subject("m", published_minilm)], tasks, protocol, cache)["m"]
    assert list(measured) == ["in_domain/email", "out_of_domain/asyncio"]
    for task, measurement in measured.items():
        expected = by_definition(published_minilm, os.path.join(beir, task))
        assert measurement.scores == pytest.approx(expected, abs=1e-6)
        assert 0.2 < measurement.scores["ndcg@10"] <= 1
        assert fmean(measurement.queries.values()) == pytest.approx(expected["ndcg@10"], abs=1e-6)
        assert measurement.counts == {"queries": 20, "documents": 20, "judgements": 20}
    written = modified(cache)
    assert len(written) == 2
    again = measure([Subject("other label", published_minilm)], find_tasks(beir), protocol, cache)
    assert again == {"other label": measured} and modified(cache) == written
    other = EvaluationProtocol(max_length=16)
    measure([Subject("m", published_minilm)], tasks, other, cache)
    assert len(modified(cache)) == 4, "other settings have results of their own"


def test_the_cache_key_is_stable(tmp_path):
    """Runs keep their results: the name of a result file changes with what is measured only."""
    texts.write_jsonl(str(tmp_path / "data" / "test.jsonl"), [{"text": "a", "label": "b"}])
    (task,) = find_tasks(str(tmp_path / "data"))
    execution = EvaluateExecution(use_gpu=True, resources_per_model={"CPU": 2})
    protocol = EvaluationProtocol(query_prompt="query: ", max_length=64, execution=execution)
    measurement = Measurement({"v-measure": 0.5}, {})
    task.write_result(str(tmp_path / "cache"), Subject("m", "unused", digest="0" * 32), protocol, measurement)
    assert os.listdir(tmp_path / "cache") == ["ace3f956d1165442c3b318aa7adc71cb.json"]
    read = task.read_result(str(tmp_path / "cache"), Subject("n", "-", digest="0" * 32), protocol)
    assert read == measurement


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


def of_queries(*scores: float) -> Measurement:
    """A measurement with these scores of single queries."""
    return Measurement({"ndcg@10": fmean(scores)}, {f"q{n}": score for n, score in enumerate(scores)})


def test_without_scores_of_queries_there_is_no_interval_and_no_verdict():
    def models(*scores: float) -> dict[str, Measurement]:
        return {"in/a": of_queries(*scores), "in/b": Measurement({"map": 0.5}, {})}

    found = compare.compare({"ours": models(0.8, 0.9, 0.7), "theirs": models(0.1, 0.2, 0.1)})
    assert found.metric == "main score" and found.tasks["in/a"].verdict == "better"
    for one, queries in ((found.tasks["in/b"], 0), (found.means["all"], 3)):
        assert (one.low, one.high, one.verdict, one.queries) == (None, None, "unknown", queries)
    assert found.means["in"].ours == pytest.approx(0.65)
    rows = list(zip(*(column.cells for column in compare.table(found).columns), strict=True))
    assert ("in/b", "0.500", "0.500", "+0.000", "-", "unknown", "0") in rows


def test_an_interval_is_that_of_resampled_queries():
    random = np.random.default_rng(0)
    differences = random.normal(0.05, 0.1, 40)
    ours = {"a": of_queries(*(0.5 + differences)), "b": of_queries(0.5, 0.5)}
    theirs = {"a": of_queries(*np.full(40, 0.5)), "b": of_queries(0.5, 0.5)}
    found = compare.compare({"ours": ours, "theirs": theirs})
    resampled = random.choice(differences, (20_000, 40)).mean(axis=1)
    task = found.tasks["a"]
    assert (task.low, task.high) == pytest.approx(np.quantile(resampled, [0.025, 0.975]), abs=2e-3)
    # The other task never differs, so the mean over both has half the difference and half the interval.
    both = found.means["all"]
    assert (both.low, both.high) == pytest.approx((task.low / 2, task.high / 2), abs=2e-3)


def test_one_query_decides_nothing():
    found = compare.compare({"ours": {"a": of_queries(0.9)}, "theirs": {"a": of_queries(0.1)}}).tasks["a"]
    assert (found.low, found.high, found.verdict) == (-1.0, 1.0, "undecided")


def test_a_directory_without_tasks_is_an_error(tmp_path):
    with pytest.raises(NotFoundError, match=f"{tmp_path}.*BEIR"):
        find_tasks(str(tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "{beir}", "--name", "organization/m"], "name and query_template need mteb"),
        (["--mteb", "STS12", "--name", "m"], "name: got .m.*organization/name"),
        ([], "data, .*mteb"),
    ],
)
def test_options_that_do_not_fit_are_refused_before_a_model_is_read(beir, options, message):
    arguments = [option.format(beir=beir) for option in options]
    refused = CliRunner().invoke(main, ["evaluate", "no-model", *arguments])
    assert refused.exit_code == 1 and re.search(message, refused.output)


@needs_ray
def test_a_task_that_fails_is_an_error_or_a_problem(published_minilm, tmp_path):
    for name in ("good", "bad"):
        texts.write_beir(str(tmp_path / name), list(texts.functions("email"))[:3])
    with open(tmp_path / "bad" / "queries.jsonl", "w") as file:
        file.write("{")
    subjects, tasks = [Subject("m", published_minilm)], find_tasks(str(tmp_path))
    with pytest.raises(InputError, match=r"bad/queries\.jsonl:1: not in BEIR format"):
        measure(subjects, tasks, EvaluationProtocol())
    problems: list[str] = []
    measured = measure(subjects, tasks, EvaluationProtocol(), problems=problems)
    assert list(scores_of(measured)["m"]) == ["good"]
    (problem,) = problems
    assert problem.startswith(f"m on bad: {tmp_path}/bad/queries.jsonl:1: not in BEIR format")


@dataclass(frozen=True)
class Witness(EvaluationTask[float]):
    """A task that records its processes in a folder: when they load a model, and when they measure it.

    Attributes:
        folder: Where.
        exits: How many times the process of the task ends.
        fails: Whether the task raises an error then.
    """

    folder: str
    exits: int = 0
    fails: bool = False

    def record(self, *parts: str) -> int:
        """Record one more event; returns how many there are like it."""
        name = os.path.join(self.folder, "-".join(parts))
        with open(name, "a") as file:
            file.write(f"{os.getpid()}\n")
        return len(Path(name).read_text().split())

    def load(self, subject, protocol):
        self.record("load", subject.label)
        return torch.get_num_threads()

    def run(self, model, subject, protocol, partial):
        if self.record("run", subject.label, self.name) <= self.exits:
            os._exit(1)
        if self.fails:
            raise InputError(f"{self.name} is damaged")
        return float(model)

    def measurement(self, result):
        return Measurement({"score": result}, {})

    def is_complete(self, result):
        return True

    def read_result(self, cache, subject, protocol):
        stored = os.path.join(cache, f"{subject.label}-{self.name}")
        return float(Path(stored).read_text()) if os.path.exists(stored) else None

    def write_result(self, cache, subject, protocol, result):
        Path(cache, f"{subject.label}-{self.name}").write_text(str(result))


def processes(folder: Path, *parts: str) -> list[str]:
    """The processes that recorded an event."""
    return (folder / "-".join(parts)).read_text().split()


@needs_ray
def test_a_process_loads_a_model_once_and_what_fails_loses_nothing_else(
    published_qwen3, tmp_path, monkeypatch
):
    monkeypatch.setattr(spread, "MAX_RETRIES", 1)
    cache, seen = tmp_path / "cache", tmp_path / "seen"
    for folder in (cache, seen):
        folder.mkdir()
    tasks = [Witness("a", str(seen)), Witness("damaged", str(seen), fails=True)]
    tasks += [Witness("dies", str(seen), exits=2), Witness("z", str(seen))]
    subjects, problems = [Subject("one", published_qwen3)], list[str]()
    found = measure(subjects, tasks, EvaluationProtocol(), str(cache), problems)
    assert list(found["one"]) == ["a", "z"]
    damaged, lost = problems
    assert damaged == "one on damaged: damaged is damaged"
    assert lost.startswith("one on dies: a process of the cluster was lost")
    first, second, third = processes(seen, "load", "one")
    assert processes(seen, "run", "one", "a") == processes(seen, "run", "one", "damaged") == [first]
    assert processes(seen, "run", "one", "dies") == [first, second]
    assert processes(seen, "run", "one", "z") == [third]
    assert sorted(os.listdir(cache)) == ["one-a", "one-z"]
    tasks[1] = replace(tasks[1], fails=False)
    found = measure(subjects, tasks, EvaluationProtocol(), str(cache))
    assert list(found["one"]) == ["a", "damaged", "dies", "z"]
    assert processes(seen, "run", "one", "a") == [first], "its result was stored"


@needs_ray
def test_models_that_are_measured_at_once_share_the_cpus(published_qwen3, tmp_path):
    tasks = [Witness("a", str(tmp_path)), Witness("b", str(tmp_path))]
    scores = {}
    for number in (1, 2, 3):
        subjects = [Subject(str(label), published_qwen3) for label in range(number)]
        for label, found in measure(subjects, tasks, EvaluationProtocol()).items():
            scores[number, label] = found["a"].scores["score"]
    assert scores == {(1, "0"): 2, (2, "0"): 1, (2, "1"): 1, (3, "0"): 1, (3, "1"): 1, (3, "2"): 1}
    own = EvaluateExecution(resources_per_model={"CPU": 2})
    measured = measure(subjects, tasks, EvaluationProtocol(execution=own))
    assert [found["b"].scores["score"] for found in measured.values()] == [2, 2, 2]


@pytest.mark.parametrize(("slots", "expected"), [(1, 1), (2, 1), (4, 2), (9, 3)])
def test_the_tasks_of_a_model_are_divided_where_there_is_room(slots, expected):
    assert Slots(slots, 8, {}).shares(num_models=2, num_tasks=3) == expected


def test_the_library_imports_without_mteb_torch_and_sentence_transformers():
    modules = ("measure", "compare", "tables", "beir", "local_tasks", "local_run", "protocol")
    code = f"import sys; from boom_ray.evaluation import {', '.join(modules)}; print([m for m in "
    code += "('mteb', 'torch', 'sentence_transformers') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
