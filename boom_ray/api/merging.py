"""Merge models."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from boom_ray.api import arguments
from boom_ray.api.arguments import ModelLike, PathLike
from boom_ray.api.results import MergeResult
from boom_ray.errors import InputError
from boom_ray.recipe import Merge, MergeMethod, SaveDtype
from boom_ray.recipe.execution import EvaluateExecution
from boom_ray.runtime.demand import TIMEOUT_S
from boom_ray.runtime.progress import ProgressCallback, reported_to


def merge(
    models: Sequence[ModelLike] = (),
    *,
    out: PathLike,
    base: ModelLike | None = None,
    method: MergeMethod = "multislerp",
    weights: Literal["equal", "size"] | Sequence[float] | Mapping[str, Sequence[float]] = "equal",
    dtype: SaveDtype = "bfloat16",
    scale: float | Literal["auto"] = 1.0,
    iterations: int = 10,
    density: float | Sequence[float] = 0.5,
    seed: int = 0,
    adapter_rank: int | None = None,
    mergekit_config: PathLike | None = None,
    search: bool = False,
    trials: int = 40,
    learn: bool = False,
    learn_steps: int = 60,
    num_gpus: float = 0,
    development: PathLike | None = None,
    test: PathLike | None = None,
    num_workers: int = 1,
    memory_gib: float = 1.0,
    start_timeout_s: float = TIMEOUT_S,
    progress: ProgressCallback | None = None,
) -> MergeResult:
    """Merge models of one architecture into one, and publish it.

    Args:
        models: Two models or more.
        out: Directory of the merged model.
        base: The model they were trained from; if given, task vectors are merged instead of weights.
        method: Merge method.
        weights: `equal`, `size` (rows behind each model), one number per model, or such a list for each group
            of layers (`embeddings`, `layers 0-5`, …, `rest`).
        dtype: Floating-point type of the merged model.
        scale: Factor on the merged task vector: 0 is the base model, 1 the merge; it may exceed 1. `auto`
            chooses it by the development tasks.
        iterations: Steps of `karcher`; 1 is the formula of the BOOM paper.
        density: Fraction of a task vector that is kept (`ties`, `dare_linear`); one number, or one per model.
        seed: Seed of the random choice of `dare_linear`.
        adapter_rank: Merge adapters of `base` into one of at most this rank;
            `record.config.merge.adapter_error` is what it leaves out.
        mergekit_config: A YAML file of mergekit that names models, base, method and settings instead.
        search: Vary the coefficients of all models and groups of layers, and publish the best merge by the
            development tasks. It starts from `method`, and others, with equal weights at `scale` (1 for
            `auto`).
        trials: The most merges that a search measures.
        learn: Learn a coefficient per model and group of layers from the pairs of the retrieval tasks of
            `development`, starting from what `method` gives.
        learn_steps: Optimizer steps of that.
        num_gpus: GPUs of a process that learns or measures; with 0, it runs on CPUs.
        development: A directory of tasks to choose by, or to learn from.
        test: A directory of tasks, without queries of `development`, on which the choice is compared with
            `method` at scale 1; in a search, with equal weights at `scale`; with `learn`, at `scale`.
        num_workers: Ray actors that share the work.
        memory_gib: Memory of one of them.
        start_timeout_s: Seconds to wait until the cluster has capacity for one of them.
        progress: Receives every `ProgressEvent`; by default progress is printed.

    Raises:
        InputError: if an argument is not valid, or listing why the models cannot be merged.
        NotFoundError: if a model does not exist.
        ConflictError: if `out` exists.

    Example:
        >>> boom.merge(["a", "b"], out="m", base="base", method="multislerp").model
        '/home/me/m'
    """
    from boom_ray.merge import mergekit
    from boom_ray.runtime import cluster

    chosen: dict[str, Any] = {
        "method": method,
        "weights": weights if isinstance(weights, str | Mapping) else list(weights),
        "dtype": dtype,
        "scale": scale,
        "iterations": iterations,
        "density": density if isinstance(density, float | int) else list(density),
        "seed": seed,
        "adapter_rank": adapter_rank,
        "space": "weights" if base is None else "deltas",
        "execution": {
            "num_workers": num_workers,
            "memory_bytes": int(memory_gib * (1 << 30)),
            "start_timeout_s": start_timeout_s,
        },
    }
    settings = arguments.section(Merge, chosen, "not valid merge settings:")
    arguments.at_least(9, trials=trials)  # methods, draws and their mean
    arguments.at_least(1, learn_steps=learn_steps)
    if mergekit_config is not None and models:
        raise InputError("give models, or mergekit_config, which names them; not both")
    if mergekit_config is not None and scale == "auto":
        raise InputError("mergekit_config has the scale of its method (lambda); give models to choose one")
    chooses = search or scale == "auto"
    if learn and chooses:
        raise InputError("learn: coefficients include the scale; give no search, and no scale auto")
    _check_tasks(chooses or learn, development, test)
    uris = arguments.model_uris(models)
    base_uri = None if base is None else arguments.model_uri(base)
    execution = settings.execution
    with reported_to(progress):
        if mergekit_config is not None:
            uris, base_uri, settings = mergekit.read(arguments.path(mergekit_config))
            settings = settings.model_copy(update={"execution": execution, "adapter_rank": adapter_rank})
        elif len(uris) < 2 and base_uri is None:
            raise InputError(f"models: got {len(uris)}; a merge needs two or more")
        cluster.connect(dashboard=False)
        target = arguments.path(out)
        merge_of = uris, target, base_uri, settings
        tasks = arguments.optional_path(development), arguments.optional_path(test)
        resources = {"GPU": num_gpus} if num_gpus else {}
        measuring = EvaluateExecution(use_gpu=num_gpus > 0, resources_per_model=resources)
        if learn:
            record, grams = _learn(*merge_of, *tasks, learn_steps, measuring)
        elif chooses:
            record, grams = _choose(*merge_of, *tasks, trials if search else None, measuring)
        else:
            record, grams = _merge(*merge_of)
    return MergeResult(target, record, uris, settings.space, grams)


def _check_tasks(chooses: bool, development: PathLike | None, test: PathLike | None) -> None:
    """Refuse a choice without tasks to choose by, and tasks without a choice."""
    if chooses != (development is not None) or (test is not None and not chooses):
        raise InputError(
            "a search (--search), scale auto and --learn choose by development tasks (--data DIR), which "
            "nothing else uses; test tasks (--test) compare the choice. Give both, or neither"
        )


def _merge(models: list[str], target: str, base: str | None, settings: Merge) -> Any:
    """The record of the merged model, and the Gram matrices."""
    from boom_ray.pipeline.publish import merge_models

    record, merged = merge_models(models, target, base, settings)
    return record, merged.grams


def _choose(
    models: list[str],
    target: str,
    base: str | None,
    settings: Merge,
    development: str | None,
    test: str | None,
    trials: int | None,
    execution: EvaluateExecution,
) -> Any:
    """The same of the merge that a search, or the choice of a scale, finds."""
    from boom_ray.pipeline.merge_search import SearchRequest, search

    request = SearchRequest(str(development), test, trials, execution)
    found = search(models, target, base, settings, request)
    return found.record, found.grams


def _learn(
    models: list[str],
    target: str,
    base: str | None,
    settings: Merge,
    development: str | None,
    test: str | None,
    num_steps: int,
    execution: EvaluateExecution,
) -> Any:
    """The same with learned coefficients."""
    from boom_ray.pipeline.learn.make import LearnOptions, merge_learned

    options = LearnOptions(str(development), num_steps, test, execution)
    record, merged = merge_learned(models, target, base, settings, options)
    return record, merged.grams
