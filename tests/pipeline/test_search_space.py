"""The space of a search, and its optimizer on a function whose best point is known."""

import math

import numpy as np
import pytest

from boom_ray.pipeline.search_space import LEAST, SearchSpace, optimize

START = {"embeddings": [0.5, 1.0], "layers 0-3": [2.0, 0.0]}


def test_a_point_changes_scale_models_and_groups():
    space = SearchSpace(START)
    point = np.zeros(7)
    assert space.coefficients(point) == START and space.distance(point) == 0
    point[:3] = math.log(2), 0.1, -0.5
    assert space.coefficients(point) == {"embeddings": [1.1, 1.0], "layers 0-3": [4.4, 0.0]}
    point[3:] = 0.4, -2, 0, 0  # embeddings and layers, each of both models
    assert space.coefficients(point) == {"embeddings": [1.5, 2 * LEAST], "layers 0-3": [4.4, 0.0]}
    assert space.distance(2 * space.deviations) == pytest.approx(2 * math.sqrt(7))
    whole = SearchSpace(START, sum_to_one=True).coefficients(point)
    assert whole["layers 0-3"] == [1, 0] and whole["embeddings"] == pytest.approx([0.986842, 0.013158])


@pytest.mark.parametrize("num_points", [9, 40, 400])
def test_the_last_point_is_the_mean_and_comes_close_to_the_best(num_points):
    space = SearchSpace({f"layers {n}-{n}": [0.6, 0.6, 0.6] for n in range(6)})
    best = {group: [1.0, 0.0, 0.5] for group in space.start}
    seen: list[list[float]] = []

    def errors(points):
        found = [space.coefficients(point) for point in points]
        seen.append([sum(np.square(np.subtract(found[g], best[g])).sum() for g in best) for found in found])
        return [-error for error in seen[-1]]

    optimize(space, num_points, errors)
    assert num_points - len(seen) < sum(map(len, seen)) <= num_points and len(seen[-1]) == 1
    start = 6 * (0.4**2 + 0.6**2 + 0.1**2)
    reached = {9: 1.0, 40: 0.8, 400: 0.1}[num_points] * start
    assert seen[-1][0] < reached and seen[-1][0] < np.mean(seen[-2])
    repeated, seen = seen, []
    optimize(space, num_points, errors)
    assert seen == repeated
