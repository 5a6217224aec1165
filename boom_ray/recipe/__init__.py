"""The recipe of a run: its sections and their meaning, one module for each."""

from boom_ray.recipe.bags import PRESETS, Bag, Bags
from boom_ray.recipe.fields import SaveDtype
from boom_ray.recipe.merging import Merge, MergeMethod, UpdateMerge
from boom_ray.recipe.recipe import Evaluate, Recipe, identity
from boom_ray.recipe.sources import (
    OWN_NEGATIVES,
    RESERVED_PROMPTS,
    BaseModelSource,
    Data,
    Pooling,
    Task,
    TaskType,
)
from boom_ray.recipe.training import Average, Distillation, Lora, Precision, Train

__all__ = [
    "OWN_NEGATIVES",
    "PRESETS",
    "RESERVED_PROMPTS",
    "Average",
    "Bag",
    "Bags",
    "BaseModelSource",
    "Data",
    "Distillation",
    "Evaluate",
    "Lora",
    "Merge",
    "MergeMethod",
    "Pooling",
    "Precision",
    "Recipe",
    "SaveDtype",
    "Task",
    "TaskType",
    "Train",
    "UpdateMerge",
    "identity",
]
