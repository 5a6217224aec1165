"""Warnings: when each is issued, that it is issued once, and the settings it names."""

import numpy as np

from boom_ray.train.diagnostics import COLLAPSE_WINDOW, WINDOW, TrainingDiagnostics


def warnings(losses, grad_norm=0.5, similarity=0.1):
    """(step, text) of all warnings, steps from 1."""
    diagnostics = TrainingDiagnostics(max_grad_norm=1.0)
    return [
        (step, text)
        for step, loss in enumerate(losses, 1)
        for text in diagnostics.update(loss, grad_norm, similarity)
    ]


def test_a_falling_loss_gives_no_warning():
    assert warnings(np.linspace(3, 1, 4 * WINDOW)) == []


def test_a_constant_loss_gives_one_warning_after_two_windows():
    ((step, text),) = warnings([2.0] * 4 * WINDOW)
    assert step == 2 * WINDOW
    assert str(2 * WINDOW) in text and "train.learning_rate" in text


def test_a_loss_that_falls_by_more_than_one_percent_gives_no_warning():
    assert warnings([2.0] * WINDOW + [1.97] * WINDOW) == []
    assert len(warnings([2.0] * WINDOW + [1.99] * WINDOW)) == 1


def test_constant_clipping_gives_one_warning_after_a_window():
    ((step, text),) = warnings(np.linspace(3, 1, 2 * WINDOW), grad_norm=9.0)
    assert step == WINDOW
    assert "train.learning_rate" in text and "train.max_grad_norm" in text
    assert warnings(np.linspace(3, 1, 2 * WINDOW), grad_norm=1.0) == []


def test_collapsed_embeddings_give_one_warning():
    ((step, text),) = warnings(np.linspace(3, 1, 20), similarity=0.99)
    assert step == COLLAPSE_WINDOW
    assert "0.95" in text and "train.temperature" in text and "base_model.pooling" in text
    assert warnings(np.linspace(3, 1, 20), similarity=0.95) == []
