"""The one builder of a merged model's record: lineage, settings, metrics, self-test and card."""

from collections.abc import Callable
from dataclasses import dataclass, field

import ray

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord, Parent, staging
from boom_ray.artifacts.contents import MergeConfig, ModelConfig, ModelMetrics, UpdateConfig
from boom_ray.artifacts.staging import Stage
from boom_ray.merge.actors import MergeOutput
from boom_ray.merge.driver import merge_into
from boom_ray.merge.merge_job import GramMatrix
from boom_ray.model import card, directory, self_test
from boom_ray.recipe import Merge, identity
from boom_ray.runtime import cluster


def merge_models(
    models: list[str],
    target: str,
    base: str | None,
    settings: Merge,
    grams: dict[str, GramMatrix] | None = None,
    measured: Callable[[Stage], ModelMetrics] = lambda _: ModelMetrics(),
) -> tuple[ModelRecord, MergeOutput]:
    """Merge models into one, and publish it.

    Args:
        models: URIs.
        target: URI of the merged model.
        base: URI of the model they were trained from, to merge task vectors.
        grams: Gram matrices cached from an earlier merge of the same models in the same space.
        measured: Measures the merged model in its stage, for the record.

    Returns:
        The record, and the details of the merge.

    Raises:
        InputError: listing why the models cannot be merged; then nothing is published at `target`.
        StorageError: if an input is damaged, or a store fails.
        ClusterError: if no node can read the inputs, or workers die too often.
    """
    with staging.staged(target) as stage:
        merge, merged = merge_into(stage, models, base, settings, grams)
        publication = Publication(
            name=storage.name_of(target),
            version=storage.name_of(target),
            parents=[directory.identify(uri) for uri in models],
            settings=settings,
            merge=merge,
            metrics=measured(stage),
        )
        return publish(stage, publication, licensed_as=models[0]), merged


@dataclass(frozen=True)
class Publication:
    """Everything a merged model's record states besides its files.

    Attributes:
        name: Of the run, or of the directory of a model that belongs to no run.
        version: The version it becomes.
        parents: The models that were merged, in order.
        settings: Settings of the merge that enter the fingerprint.
        merge: Settings as resolved, with the coefficients.
        rows: Rows behind the model, if known.
        table: Scores for the card, as Markdown.
        times: Start and end of each stage, in seconds since 1970.
    """

    name: str
    version: str
    parents: list[Parent]
    settings: Merge
    merge: MergeConfig
    rows: int | None = None
    update: UpdateConfig | None = None
    seed: int | None = None
    metrics: ModelMetrics = field(default_factory=ModelMetrics)
    table: str = ""
    times: dict[str, tuple[float, float]] = field(default_factory=dict)
    self_test: list[float] = field(default_factory=list)


def publish(stage: Stage, publication: Publication, licensed_as: str) -> ModelRecord:
    """Write the card, and commit the stage.

    Args:
        licensed_as: URI of the model whose licence the weights inherit.

    Returns:
        The record as written.
    """
    made = publication
    digests = [parent.digest for parent in made.parents]
    chosen_on = [made.metrics.search.development] if made.metrics.search else []
    record = ModelRecord(
        name=made.name,
        version=made.version,
        fingerprint=artifacts.fingerprint([digests, identity(made.settings), *chosen_on]),
        config=ModelConfig(rows=made.rows, merge=made.merge, update=made.update),
        seed=made.seed,
        parents=made.parents,
        metrics=made.metrics,
        times=made.times,
        self_test=made.self_test,
    )
    card.write(stage.local, record, directory.license_of(licensed_as), made.table)
    return stage.commit(record)


def self_test_of(stage: Stage) -> list[float]:
    """The self-test vector of the model in a stage; computed on a worker, which has memory for the model."""
    stage.flush()
    found: list[float] = cluster.result_of(ray.remote(num_cpus=1)(self_test.compute).remote(stage.uri))
    return found
