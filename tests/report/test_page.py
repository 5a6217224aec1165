"""The page of a run shows all results and data, fetches nothing, and works for runs that are not finished."""

import json
import os
import time
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord, staging
from boom_ray.artifacts.contents import (
    MergeConfig,
    ModelConfig,
    ModelMetrics,
    SelfCheck,
    TrainingConfig,
    TrainingMetrics,
)
from boom_ray.cli import main
from boom_ray.data import bags, corpus
from boom_ray.errors import NotFoundError
from boom_ray.evaluation import compare
from boom_ray.evaluation.measure import scores_of
from boom_ray.evaluation.protocol import Measurement
from boom_ray.merge import distances, gram
from boom_ray.merge.driver import recorded_coefficients
from boom_ray.recipe import Bags, BaseModelSource, Data, Evaluate, Merge, Recipe, Task
from boom_ray.report.collect import collect
from boom_ray.report.render import page, write
from boom_ray.report.schedule import timeline
from boom_ray.runs import ancestry
from boom_ray.runs.identity import claim
from boom_ray.runs.scores import mean_scores
from boom_ray.train.metrics_log import StepMetrics
from tests import texts
from tests.pages import Reader

HOSTILE = 'out_of_domain/"><img src=x onerror=alert(1)>&lt;'
SHAPES = {"embed.weight": 40} | {f"layers.{layer}.{part}.weight": 8 for layer in range(12) for part in "ab"}
SECTIONS = ["quality", "data", "training", "merge", "time", "lineage", "details"]


class StoredRun:
    """A run of many bags and tasks, written by the code of the stages, without training."""

    def __init__(self, directory: str, num_bags: int, num_tasks: int) -> None:
        self.random = np.random.default_rng(0)
        base = os.path.join(directory, "base-model")
        os.makedirs(base)
        self.base = {name: self._tensor(rows) for name, rows in SHAPES.items()}
        save_file(self.base, os.path.join(base, "model.safetensors"))
        with open(os.path.join(base, "config.json"), "w", encoding="utf-8") as file:
            json.dump({"model_type": "bert", "hidden_size": 8}, file)
        kinds = ("retrieval", "sts", "classification", "clustering")
        tasks = [
            Task(name=f"task-{number}", path=self._rows(directory, number), type=kinds[number % 4])
            for number in range(num_tasks)
        ]
        self.recipe = Recipe(
            name="large",
            storage=os.path.join(directory, "runs"),
            base_model=BaseModelSource(path=base),
            data=Data(tasks=tasks, max_bad_fraction=0.2),
            bags=Bags(ratios=[10.0 * (index % 10 + 1) for index in range(num_bags)], seed=3),
            evaluate=Evaluate(data="eval"),
        )
        self.root = self.recipe.root
        self.benchmarks = [
            f"{('in', 'out_of')[number % 2]}_domain/{number}" for number in range(num_tasks - 1)
        ]
        self.benchmarks.append(HOSTILE)
        self.labelled: set[str] = set()
        self.start = time.time()
        self.parent = claim(self.recipe)
        self.corpus = corpus.prepare(self.recipe.data, f"{self.root}/corpus", self.recipe.name)
        self.bags = bags.publish(self.corpus, self.recipe.bags, f"{self.root}/bags")
        self.names = [bags.name_of(index) for index in range(num_bags)]

    def _tensor(self, rows: int) -> torch.Tensor:
        return torch.from_numpy(self.random.normal(size=(rows, 8)).astype(np.float32))

    def _rows(self, directory: str, number: int) -> str:
        """A file of rows, one of them bad."""
        rows: list[dict[str, Any]] = [
            {"query": f"question {number} {row}", "pos": [f"answer {row}"], "neg": [f"wrong {row}"]}
            for row in range(20 + 7 * number)
        ]
        return texts.write_jsonl(
            os.path.join(directory, "data", f"{number}.jsonl"), [*rows, {"query": "bad"}]
        )

    def train(self, index: int) -> None:
        """Publish a bag's model: the base with random changes. The training of the third has a pause."""
        steps, start = 30 + 25 * index, self.start + 120 * (index // 4)
        pauses = [400 * (step > 20 and index == 2) for step in range(steps)]
        with staging.staged(f"{self.root}/models/{self.names[index]}") as stage:
            moved = {key: value + 0.1 * self._tensor(len(value)) for key, value in self.base.items()}
            save_file(moved, os.path.join(stage.local, "model.safetensors"), {"format": "pt"})
            with open(os.path.join(stage.local, "metrics.jsonl"), "w", encoding="utf-8") as file:
                for step, pause in enumerate(pauses):
                    loss = 1.2 / (1 + 0.05 * step) + 0.2 * self.random.random()
                    ended = start + 5 + step + pause
                    shares = (900.0, 0.1, 0.2, 0.9, 0.3, 0.0, 1 + index % 2)
                    line = StepMetrics(step + 1, ended, "task-0", loss, 900, 1.0, 1e-5, *shares)
                    file.write(json.dumps(asdict(line)) + "\n")
            training = TrainingConfig(bag=self.recipe.bags.ratios[index], settings=self.recipe.train)
            metrics = TrainingMetrics(
                step=steps,
                loss=0.4,
                tokens=900 * steps,
                seconds=1.0 * steps,
                check=SelfCheck(before=0.5, after=0.8),
                num_ranks=1 + index % 2,
            )
            stage.commit(
                ModelRecord(
                    name=self.recipe.name,
                    version=self.names[index],
                    fingerprint="0",
                    config=ModelConfig(rows=self.bags.config.rows[index], training=training),
                    seed=self.recipe.train.seed,
                    parents=[self.parent, self.corpus.as_parent(), self.bags.as_parent()],
                    metrics=ModelMetrics(training=metrics),
                    times={"train": (start, start + 15 + steps + pauses[-1])},
                )
            )

    def weights(self, name: str) -> dict[str, torch.Tensor]:
        """The tensors of a bag's model."""
        return load_file(f"{self.root}/models/{name}/model.safetensors")

    def merge(self, measured: bool = True, like: str | None = None) -> ModelRecord:
        """Publish the merged model with the angles of its inputs, or with the content of one of them."""
        pieces, number = [self.weights(name) for name in self.names], len(self.names)
        weights, settings = [1 / number] * number, Merge(dtype="float32")
        products = {}
        for key in self.base:
            sums = torch.zeros(number, number, dtype=torch.float64)
            gram.accumulate(sums, [piece[key].flatten() for piece in [*pieces, self.base]], torch.float64)
            products[key] = sums.tolist()
        found = np.array([recorded_coefficients(settings, weights, sums) for sums in products.values()])
        ranges = np.stack([found.min(0), found.mean(0), found.max(0)], axis=1).tolist()
        merged = self.weights(like) if like else {k: sum(p[k] for p in pieces) / number for k in self.base}
        config = MergeConfig(
            method="multislerp",
            space="deltas",
            weights=weights,
            dtype="float32",
            scale=1.0,
            iterations=10,
            density=0.5,
            seed=0,
            coefficients=ranges,
        )
        models = [artifacts.read_record(f"{self.root}/models/{name}") for name in self.names]
        with staging.staged(f"{self.root}/models/v0001") as stage:
            save_file(merged, os.path.join(stage.local, "model.safetensors"), {"format": "pt"})
            distances.write_summary(self.names, "deltas", products, stage.local)
            moments = [self.start + 900, self.start + 930, self.start + 1100]
            return stage.commit(
                ModelRecord(
                    name=self.recipe.name,
                    version="v0001",
                    fingerprint="0",
                    config=ModelConfig(merge=config),
                    seed=self.recipe.train.seed,
                    parents=[model.as_parent() for model in models if model],
                    metrics=self._metrics() if measured else ModelMetrics(),
                    times={"merge": (moments[0], moments[1]), "evaluate": (moments[1], moments[2])},
                )
            )

    def _metrics(self) -> ModelMetrics:
        """Scores of 30 queries per task: later models are better, but worse on one task."""
        labels = ["base", *self.names, "merged"]
        measured: dict[str, dict[str, Measurement]] = {label: {} for label in [*labels, "baseline"]}
        for task in sorted(self.benchmarks):
            queries = self.random.uniform(0.2, 0.8, 30)
            for number, label in enumerate(labels):
                shift = (-0.2 if task == HOSTILE else 0.2) * number / len(labels)
                measured[label][task] = self._measurement(task, queries + shift)
            measured["baseline"][task] = self._measurement(task, queries + 0.15)
        ours, base, full = ({label: measured[label]} for label in ("merged", "base", "baseline"))
        content = compare.compare(ours | full).model_dump()
        storage.write_bytes(f"{self.root}/comparison.json", json.dumps(content).encode())
        results = scores_of({label: measured[label] for label in labels})
        means = {label: mean_scores(scores) for label, scores in results.items()}
        return ModelMetrics(evaluation=results, means=means, comparison=compare.compare(ours | base))

    def _measurement(self, task: str, scores: np.ndarray) -> Measurement:
        scores = np.clip(scores + self.random.normal(0, 0.05, len(scores)), 0, 1)
        mean = float(scores.mean())
        if task in self.labelled:
            return Measurement({"accuracy": mean}, {})
        queries = {f"q{number}": float(score) for number, score in enumerate(scores)}
        return Measurement(
            {"ndcg@10": mean, "mrr@10": 0.9 * mean, "recall@100": min(1.0, 1.2 * mean)}, queries
        )


@pytest.fixture(scope="module")
def large(tmp_path_factory) -> tuple[StoredRun, ModelRecord, Reader]:
    """Ten bags and thirty tasks, and their page."""
    run = StoredRun(str(tmp_path_factory.mktemp("large")), 10, 30)
    for index in range(10):
        run.train(index)
    merged = run.merge()
    with open(write(run.root), encoding="utf-8") as file:
        return run, merged, Reader(file.read())


@pytest.fixture
def small(tmp_path) -> StoredRun:
    """Three bags of three tasks, not trained yet."""
    return StoredRun(str(tmp_path), 3, 3)


def sections(reader: Reader) -> list[str]:
    return [attributes["id"] for attributes in reader.all("section")]


def test_the_page_shows_every_model_on_every_task_with_its_intervals(large):
    run, merged, reader = large
    results = merged.metrics.evaluation
    full = json.loads(storage.read_bytes(f"{run.root}/comparison.json"))
    assert sections(reader) == SECTIONS
    for task in run.benchmarks:
        scores = [results[label][task]["ndcg@10"] for label in results] + [full["tasks"][task]["theirs"]]
        assert [task, *(f"{score:.3f}" for score in scores)] in reader.rows
        assert [task, *(f"{results[label][task]['recall@100']:.3f}" for label in results)] in reader.rows
    means = merged.metrics.means
    assert [
        "mean out of domain",
        *(f"{means[m]['out_of_domain']['mrr@10']:.3f}" for m in means),
    ] in reader.rows
    verdicts = [entry.verdict for entry in merged.metrics.comparison.tasks.values()]
    assert {"better", "worse"} <= set(verdicts)
    assert f"Better on {verdicts.count('better')} of 30 tasks, worse on {HOSTILE} (" in reader.text
    mean = full["means"]["all"]
    assert f"{mean['ours']:.3f} compared with {mean['theirs']:.3f}" in reader.text


def test_the_page_shows_data_angles_and_origin(large):
    run, merged, reader = large
    for number, task in enumerate(run.recipe.data.tasks):
        drawn = [pq.read_table(f"{run.root}/bags/{name}.parquet")["task"].to_pylist() for name in run.names]
        rows = [bag.count(task.name) for bag in drawn]
        assert [task.name, task.type, f"{20 + 7 * number}", "1", "0", *map(str, rows)] in reader.rows
    one, two = (
        torch.cat([(run.weights(name)[key] - run.base[key]).flatten().double() for key in run.base])
        for name in ("bag-1", "bag-2")
    )
    angle = torch.rad2deg(torch.acos(one @ two / one.norm() / two.norm())).item()
    assert ["bag-1", "", f"{angle:.1f}"] in [row[:3] for row in reader.rows]
    for name in [*run.names, "v0001"]:
        assert artifacts.verify(f"{run.root}/models/{name}").digest in reader.text
    for text in (run.corpus.digest, run.bags.digest, run.parent.digest, *merged.libraries.values()):
        assert text in reader.text
    assert merged.libraries["torch"] == torch.__version__


def test_curves_end_at_their_last_step_and_a_pause_divides_a_bar(large):
    run, _, reader = large
    lines = [line["points"].split() for line in reader.all("polyline")]
    assert len(lines) == 20, "a common chart and one for each"
    ends = [float(line[-1].split(",")[0]) for line in lines[:10]]
    assert ends == pytest.approx([100 * (30 + 25 * index) / 255 for index in range(10)], abs=0.01)
    bars = {bar.label: bar for bar in timeline(collect(run.root)).bars}
    assert list(bars) == ["corpus", *run.names, "merge", "evaluate"]
    assert len(bars["bag-3"].busy) == 2 and len(bars["bag-2"].busy) == 1
    assert bars["evaluate"].start + bars["evaluate"].width == pytest.approx(100, abs=0.02)


def test_nothing_is_fetched_and_names_are_escaped(large):
    _, _, reader = large
    assert reader.fetched() == []
    assert not {"script", "img", "iframe", "link", "object"} & {tag for tag, _ in reader.tags}
    assert not [name for _, attributes in reader.tags for name in attributes if name.startswith("on")]
    (style,) = reader.styles
    assert "url(" not in style and "@import" not in style
    policies = [meta["content"] for meta in reader.all("meta") if "http-equiv" in meta]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert HOSTILE in reader.text


def test_a_run_that_is_not_finished_has_a_page(small):
    with pytest.raises(NotFoundError, match=f"{small.root}-other"):
        collect(f"{small.root}-other")
    started = Reader(page(collect(small.root)))
    assert "large is not finished: 0 of 3 models trained, none merged" in started.text
    assert sections(started) == ["data", "time", "details"]
    small.train(1)
    trained = Reader(page(collect(small.root)))
    assert "1 of 3 models trained" in trained.text and sections(trained) == [
        "data",
        "training",
        "time",
        "details",
    ]
    with pytest.raises(NotFoundError, match="no version v0001; none"):
        collect(small.root, "v0001")
    small.train(0)
    small.train(2)
    small.merge(measured=False)
    merged = Reader(page(collect(small.root)))
    assert "large v0001 is published" in merged.text and "evaluate.data" in merged.text
    assert sections(merged) == SECTIONS[1:]
    with pytest.raises(NotFoundError, match=r"no version v0002; .*v0001"):
        collect(small.root, "v0002")


def test_without_intervals_nothing_is_called_better_or_worse(small):
    for index in range(3):
        small.train(index)
    small.merge()
    found = collect(small.root)
    assert found.record
    metrics = found.record.metrics.model_copy(update={"comparison": None})
    found = replace(found, comparison=None, record=found.record.model_copy(update={"metrics": metrics}))
    text = Reader(page(found)).text
    assert "large v0001 is ahead of its base model" in text and f"Behind on {HOSTILE}." in text
    assert not any(word in text for word in ("Better on", "undecided", "95 %"))


def test_tasks_of_all_types_are_in_one_table(small):
    labelled, *_ = small.benchmarks
    small.labelled = {labelled}
    for index in range(3):
        small.train(index)
    metrics = small.merge().metrics
    reader = Reader(page(collect(small.root)))
    for task in small.benchmarks:
        of_models = [next(iter(found[task].values())) for found in metrics.evaluation.values()]
        shown = [row for row in reader.rows if row[0] == task and row[1] == f"{of_models[0]:.3f}"]
        assert shown and shown[0][1:-1] == [f"{score:.3f}" for score in of_models]
    assert metrics.comparison.tasks[labelled].verdict == "unknown"
    assert metrics.comparison.means["all"].low is None
    assert "accuracy of classification" in reader.text and "large v0001 is ahead of its base" in reader.text
    with_recall = [row for row in reader.rows if row[0] == labelled]
    assert len(with_recall) < len([row for row in reader.rows if row[0] == HOSTILE]), "it has no recall"


def test_a_long_pause_is_omitted_from_the_timeline(small):
    for index in range(3):
        small.train(index)
    small.merge(measured=False)
    found = collect(small.root)
    before, week = timeline(found), 7 * 86400
    assert found.record and before.cuts == []
    later = {stage: (start + week, end + week) for stage, (start, end) in found.record.times.items()}
    after = timeline(replace(found, record=found.record.model_copy(update={"times": later})))
    assert [label for _, label in after.cuts] == ["7 d"] and after.seconds < before.seconds


def test_a_version_with_the_content_of_its_parent_is_not_its_own_ancestor(small):
    for index in range(3):
        small.train(index)
    merged = small.merge(like="bag-2")
    assert merged.digest == merged.parents[1].digest
    root = ancestry.ancestry(merged.as_parent(), ancestry.artifacts_below(small.root))
    assert [model.identity.version for model in root.models] == small.names
    assert [parent.identity.version for parent in root.models[1].parents] == ["base", "corpus", "bags"]
    assert "bag-2" in Reader(page(collect(small.root))).text


def test_the_command_prints_the_path_of_the_page(small, tmp_path):
    out = f"{tmp_path}/pages/page.html"
    result = CliRunner().invoke(main, ["report", small.root, "--out", out])
    assert result.exit_code == 0 and result.output == f"report: {out}\n"
    with open(out, encoding="utf-8") as file:
        assert "large is not finished" in Reader(file.read()).text
    refused = CliRunner().invoke(main, ["report", f"{tmp_path}/nothing"])
    assert refused.exit_code == 1 and "error: " in refused.output and "/nothing: " in refused.output
