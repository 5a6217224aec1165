"""Corpus, bags and training: the part of a run that an update shares, and `boom-ray train`."""

import logging

from boom_ray.artifacts import CorpusRecord, Parent
from boom_ray.data import bags, corpus
from boom_ray.data.bags import BASELINE
from boom_ray.recipe import Bag, Bags, Recipe
from boom_ray.runs.driver import Driver, driving
from boom_ray.runs.identity import claim
from boom_ray.runs.layout import FIRST_VERSION, Layout
from boom_ray.runtime import cluster
from boom_ray.train.bagging import train_bags

logger = logging.getLogger(__name__)


def train(recipe: Recipe, only: int | None = None, baseline: bool = False) -> list[str]:
    """Prepare corpus and bags, and train the missing models.

    Args:
        only: Index of the single bag to train.
        baseline: Also train a model on the full corpus, unless one of the bags is the full corpus.

    Returns:
        URIs of the bags' models; the baseline's is last, if one was trained.

    Raises:
        BoomError: as the stages do.
    """
    base = claim(recipe)
    with driving(recipe.root, "train", FIRST_VERSION, only) as driver:
        return prepare_and_train(recipe, base, driver, only, baseline)


def prepare_and_train(
    recipe: Recipe, base: Parent, driver: Driver, only: int | None = None, baseline: bool = False
) -> list[str]:
    """The body of `train`, for a driver that has claimed the run's name for the recipe."""
    layout = Layout(recipe.root)
    driver.begin("corpus")
    prepared = corpus.prepare(recipe.data, layout.corpus, recipe.name)
    _log_corpus(prepared)
    driver.begin("bags")
    drawn = bags.publish(prepared, recipe.bags, layout.bags)
    sizes = ", ".join(f"{bags.name_of(index)} {rows} rows" for index, rows in enumerate(drawn.config.rows))
    logger.info("bags: %s", sizes)
    full = None
    if baseline and bags.whole(recipe) is None:
        full = bags.publish(prepared, Bags(ratios=[Bag(ratio=100)], seed=recipe.bags.seed), layout.baseline)
    driver.begin("train")
    cluster.connect()
    return train_bags(recipe, prepared, drawn, base, driver, only, full)


def baseline_name(recipe: Recipe) -> str:
    """Name of the model of the full corpus: a bag that holds all of it, or the baseline."""
    whole = bags.whole(recipe)
    return BASELINE if whole is None else bags.name_of(whole)


def _log_corpus(prepared: CorpusRecord) -> None:
    for name, task in prepared.config.tasks.items():
        left_out = f"{task.quarantined} bad rows in quarantine, {task.duplicates} duplicates"
        logger.info("corpus: %s (%s): %d rows; %s", name, task.type, task.rows, left_out)
