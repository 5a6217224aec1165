"""The choice of a scale on development queries, and queries that are kept apart from what is reported."""

import math
import os

import numpy as np
import pytest

from boom_ray.errors import InputError
from boom_ray.evaluation.choice import choose, mean_score, standard_error
from boom_ray.evaluation.disjoint import check_disjoint, queries_below
from boom_ray.evaluation.protocol import Measurement
from tests import texts


def measured(scores: list[float]) -> Measurement:
    return Measurement({"ndcg@10": float(np.mean(scores))}, {str(n): score for n, score in enumerate(scores)})


def test_the_standard_error_is_that_of_paired_differences_averaged_over_tasks():
    ours = {"a": measured([0.1, 0.5, 0.9]), "b": measured([0.3, 0.2])}
    theirs = {"a": measured([0.2, 0.4, 0.5]), "b": measured([0.3, 0.6])}
    first, second = np.array([-0.1, 0.1, 0.4]), np.array([0.0, -0.4])
    expected = math.sqrt(first.var(ddof=1) / 3 + second.var(ddof=1) / 2) / 2
    assert standard_error(ours, theirs) == pytest.approx(expected)
    assert standard_error({"a": measured([0.5])}, {"a": measured([0.7])}) == math.inf
    assert (
        standard_error({"a": Measurement({"accuracy": 0.5}, {})}, {"a": Measurement({"accuracy": 1}, {})})
        == 0
    )


def test_the_scale_closest_to_one_within_one_standard_error_of_the_best_is_chosen():
    generator = np.random.default_rng(0)
    hard = generator.random(400)  # for all candidates alike
    gains = {"0.5": -0.1, "1": 0.0, "1.25": 0.049, "1.5": 0.05, "2": 0.04}
    distances = {scale: abs(float(scale) - 1) for scale in gains}
    tasks = {
        scale: {"t": measured(list(hard + gain + 0.04 * generator.standard_normal(400)))}
        for scale, gain in gains.items()
    }
    scores = {scale: mean_score(found) for scale, found in tasks.items()}
    chosen, errors = choose(tasks, distances)
    assert errors[max(scores, key=scores.get)] == 0 and 0.001 < errors["1"] < 0.004
    assert chosen == "1.25", "1.5 is better by less than the noise, 1 is worse by more"
    alone = {scale: {"t": Measurement({"accuracy": score}, {})} for scale, score in scores.items()}
    assert choose(alone, distances)[0] == max(scores, key=scores.get), "without scores of queries, the best"


def test_of_several_candidates_within_the_noise_the_best_of_the_closest_is_chosen():
    tasks = {
        "linear": {"t": measured([0.5, 0.6, 0.7])},
        "karcher": {"t": measured([0.6, 0.7, 0.9])},
        "karcher x1.5": {"t": measured([0.7, 0.7, 0.85])},
        "karcher x0.5": {"t": measured([0.1, 0.1, 0.1])},
    }
    distances = {"linear": 0, "karcher": 0, "karcher x1.5": 0.5, "karcher x0.5": 0.5}
    assert choose(tasks, distances)[0] == "karcher"
    tasks["linear"] = {"t": measured([0.7, 0.6, 0.88])}
    assert choose(tasks, distances)[0] == "karcher", "both are within the noise"


def test_directories_that_share_queries_are_refused(tmp_path):
    pairs = list(texts.functions("email"))[:12]
    for name, part in (("dev", pairs[:5]), ("test", pairs[5:10]), ("mixed", pairs[4:8])):
        texts.write_beir(str(tmp_path / name / "search"), part)
    dev, test, mixed = (str(tmp_path / name) for name in ("dev", "test", "mixed"))
    check_disjoint(dev, test)
    assert queries_below(dev) == {text for text, _ in pairs[:5]}
    for development, reported in ((dev, dev), (f"{dev}/search", dev), (dev, f"{dev}/search")):
        with pytest.raises(InputError, match="none contains the other"):
            check_disjoint(development, reported)
    with pytest.raises(InputError, match="share 1 queries"):
        check_disjoint(mixed, dev)

    judged = os.path.join(mixed, "search", "qrels")
    for name in os.listdir(judged):
        with open(os.path.join(judged, name)) as file:
            header, _, *rest = file.read().splitlines()
        with open(os.path.join(judged, name), "w") as file:
            file.write("\n".join([header, *rest]))
    check_disjoint(mixed, dev)  # the shared query has no judgement any more

    rows = [{"sentence1": "a", "sentence2": "b", "score": 1}]
    for directory in (dev, test):
        texts.write_jsonl(f"{directory}/likeness/test.jsonl", rows)
    with pytest.raises(InputError, match="share 1 queries"):
        check_disjoint(dev, test)
