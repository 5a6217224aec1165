"""The private API of Ray Train that bags use is there, and has the effect that they rely on."""

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from boom_ray.train.ray_internals import RanksPlaced, Trainer, variables


def callbacks(trainer: TorchTrainer) -> list[type]:
    return [type(callback) for callback in trainer._create_default_callbacks()]


def test_a_trainer_reports_its_placement_in_place_of_a_process_on_the_head():
    scaling = ScalingConfig(num_workers=1)
    rays, ours = (
        callbacks(TorchTrainer(print, scaling_config=scaling)),
        callbacks(Trainer(print, scaling_config=scaling, report=print)),
    )
    assert rays.count(PlacementGroupCleanerCallback) == 1
    assert ours == [RanksPlaced if one is PlacementGroupCleanerCallback else one for one in rays]


def test_what_a_user_sets_for_ray_train_reaches_trainers_on_other_nodes(monkeypatch):
    name = "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"
    monkeypatch.delenv(name, raising=False)
    assert name not in variables()
    monkeypatch.setenv(name, "900")
    assert variables()[name] == "900"
