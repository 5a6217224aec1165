"""The training state: its values after steps, and the form stored in checkpoints."""

import json
import math

import pytest
from pydantic import ValidationError

from boom_ray.artifacts.contents import SelfCheck
from boom_ray.train.training_state import TrainingState


def test_steps_add_up():
    state = TrainingState.initial(num_ranks=2, score=0.5)
    assert state.step == 0 and math.isnan(state.loss)
    state = state.after_step(loss=2.0, tokens=10, seconds=0.5).after_step(loss=1.5, tokens=20, seconds=1.0)
    assert (state.step, state.loss, state.tokens, state.seconds) == (2, 1.5, 30, 1.5)
    assert state.after_training(0.75).check == SelfCheck(before=0.5, after=0.75)


def test_a_checkpoint_restores_the_state():
    state = TrainingState.initial(2, score=None).after_step(loss=2.0, tokens=10, seconds=0.5)
    values = json.loads(json.dumps(state.to_checkpoint()))
    assert (values["step"], values["num_ranks"]) == (1, 2)
    assert TrainingState.from_checkpoint(values) == state


def test_a_checkpoint_without_a_required_value_is_rejected():
    values = TrainingState.initial(2, score=None).to_checkpoint()
    del values["num_ranks"]
    with pytest.raises(ValidationError, match="num_ranks"):
        TrainingState.from_checkpoint(values)
