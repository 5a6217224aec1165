"""The private API of Ray Train that bags use is there, and has the effect that they rely on."""

from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from boom_ray.train.ray_internals import RanksPlaced, Trainer


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
