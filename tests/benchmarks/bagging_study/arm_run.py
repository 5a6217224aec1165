"""One arm at one seed: train at each learning rate, choose on development tasks, measure the tests once.

At the tuning seed an arm is trained at every learning rate; at other seeds it takes the rate that was best
there. Every seed chooses its own scale. Whatever was trained, merged or measured before is not done again.
"""

import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import fmean
from typing import Any

import numpy as np

import boom_ray as boom
from tests.benchmarks.bagging_study.arms import Arm
from tests.benchmarks.bagging_study.environment import environment
from tests.benchmarks.bagging_study.lines import Line, Scores, Variant
from tests.benchmarks.bagging_study.study import Study, trained_tokens

TUNING_SEED = 0


class ArmRun:
    """An arm at one seed.

    Args:
        learning_rates: One, or several of which the best is chosen.
    """

    def __init__(self, study: Study, arm: Arm, seed: int, learning_rates: Sequence[float]) -> None:
        self.study, self.arm, self.seed, self.learning_rates = study, arm, seed, learning_rates
        self.merged = study.work / "merged" / f"{arm.name} {seed}"  # scratch: quickly made again
        self.seconds = dict.fromkeys(("train", "merge", "evaluate"), 0.0)

    def line(self) -> Line:
        """Train, choose and measure what is missing; the result."""
        base = self.study.base
        if not self.arm.trainings:
            return self._line(None, {}, {}, self._variant(base, 1.0, self.development(base)), None)
        models = {rate: self.model(rate) for rate in self.learning_rates}
        tuning = {rate: self.development(model) for rate, model in models.items()}
        rate = max(tuning, key=tuning.__getitem__)
        scaled = {scale: self.scaled(models[rate], scale) for scale in self.study.scales}
        scales = {scale: self.development(model) for scale, model in scaled.items()}
        best = max(scales, key=scales.__getitem__)
        plain, strong = (self._variant(scaled[scale], scale, scales[scale]) for scale in (1.0, best))
        shutil.rmtree(self.merged, ignore_errors=True)
        return self._line(rate, tuning, scales, plain, strong)

    def recipes(self, learning_rate: float) -> list[boom.Recipe]:
        """The recipes of the arm's trainings."""
        return [self.study.recipe(training, self.seed, learning_rate) for training in self.arm.trainings]

    def model(self, learning_rate: float) -> str:
        """Train the arm's models and merge them; the URI of the result."""
        with self._timed("train"):
            models = [model for recipe in self.recipes(learning_rate) for model in boom.train(recipe)]
        if len(models) == 1:
            return models[0]
        with self._timed("merge"):
            out = self.merged / f"rate-{learning_rate:g}"
            return self.study.merge(models, out, method=self.arm.method, **self._learning())

    def _learning(self) -> dict[str, Any]:
        development = str(self.study.corpus.directory / "development")
        return {"learn": True, "development": development} if self.arm.learned else {}

    def scaled(self, model: str, scale: float) -> str:
        """The base model plus a multiple of a model's task vector; the URI of the result."""
        if scale == 1:
            return model
        with self._timed("merge"):
            out = self.merged / f"scale-{scale:g}"
            return self.study.merge([model], out, method="task_arithmetic", scale=scale)

    def development(self, model: str) -> float:
        """What settings are chosen by: nDCG@10, the mean over both domains of the mean over their tasks."""
        domains: dict[str, list[float]] = {}
        with self._timed("evaluate"):
            for task, measured in self.study.measure(model, "development").items():
                domains.setdefault(task.split("/")[0], []).append(measured.scores["ndcg@10"])
        return fmean(fmean(scores) for scores in domains.values())

    def _variant(self, model: str, scale: float, development: float) -> Variant:
        with self._timed("evaluate"):
            measured = self.study.measure(model, "test")
        test = {
            task: Scores.pack(np.array([score for _, score in sorted(found.queries.items())]))
            for task, found in measured.items()
        }
        return Variant(scale=scale, development=development, test=test)

    def _line(
        self,
        rate: float | None,
        tuning: dict[float, float],
        scales: dict[float, float],
        plain: Variant,
        scaled: Variant | None,
    ) -> Line:
        return Line(
            arm=self.arm.name,
            seed=self.seed,
            corpus=self.study.corpus.fingerprint,
            learning_rate=rate,
            tuning={f"{rate:g}": score for rate, score in tuning.items()},
            scales={f"{scale:g}": score for scale, score in scales.items()},
            tokens=sum(map(trained_tokens, self.recipes(rate))) if rate else 0,
            plain=plain,
            scaled=scaled,
            seconds={stage: round(seconds, 1) for stage, seconds in self.seconds.items()},
            environment=environment(self.study.gpu),
        )

    @contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] += time.monotonic() - started
