"""Models measured on tasks of mteb, each pair a Ray task."""

import os
import tempfile
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import mteb
import ray
from datasets.exceptions import DatasetNotFoundError
from mteb.models import ModelMeta
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.results import TaskResult
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from boom_ray import artifacts, storage
from boom_ray.errors import BoomError
from boom_ray.evaluation.mteb_results import Results
from boom_ray.model import directory
from boom_ray.runtime.cluster import result_of
from boom_ray.runtime.progress import Progress


@dataclass(frozen=True)
class Model:
    """A model to measure.

    Attributes:
        label: What tables call it.
        uri: Its directory.
        name: What result files call it, as `organization/name`.
        revision: Identity of its content.
    """

    label: str
    uri: str
    name: str
    revision: str


@dataclass(frozen=True)
class Protocol:
    """How tasks are measured.

    Attributes:
        query_template: Query text from `{instruction}`, the task's own, and `{query}`; None for the prompts
            of the model's directory, as mteb chooses among them.
        num_cpus: Of one Ray task.
        num_gpus: Of one Ray task; with none, models run on the CPU.
        batch_size: Texts in one forward pass.
    """

    query_template: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    batch_size: int = 32

    @property
    def variant(self) -> dict[str, Any] | None:
        """What makes results differ from those with the model's own prompts, as mteb files them."""
        return {"query_template": self.query_template} if self.query_template else None


def identified(uri: str, label: str, name: str | None = None) -> Model:
    """A model directory as one to measure.

    Args:
        name: As `organization/name`; by default the hub's, or `local/` with name and version.
    """
    identity = directory.identify(uri)
    known = storage.hub_name(uri)[0] if storage.is_hub(uri) else f"local/{identity.name}-{identity.version}"
    return Model(label, uri, name or known, identity.digest)


def measure(
    models: list[Model], tasks: dict[str, mteb.AbsTask], protocol: Protocol, results: str
) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Measure every model on every task, spread over the cluster; what has a result already is not again.

    Args:
        tasks: By the name tables call them.
        results: URI of the result files.

    Returns:
        label -> task -> main score, for tasks that all models were measured on; and why the others were not.
    """
    scores: dict[str, dict[str, float]] = {model.label: {} for model in models}
    problems: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as scratch, Progress() as progress:
        kept, pending = Results(results, scratch), {}
        for model in models:
            meta = _named_only(model, protocol)
            for name, task in tasks.items():
                found = kept.find(task, meta)
                if found and not found.get_missing_evaluations(task):
                    scores[model.label][name] = _score(found, task)
                else:
                    pending[_submit(model, task, found, protocol)] = model.label, name
        waiting = list(pending)
        while waiting:
            (reference,), waiting = ray.wait(waiting)
            label, name = pending[reference]
            try:
                result, meta = result_of(reference)
            except BoomError as error:
                problems.setdefault(str(error), []).append(f"{label} on {name}")
            else:
                kept.keep(result, meta, {"batch_size": protocol.batch_size})
                scores[label][name] = _score(result, tasks[name])
            progress.update("mteb", len(pending) - len(waiting), len(pending), f"{label}, {name}")
    complete = [name for name in tasks if all(name in found for found in scores.values())]
    return {label: {name: found[name] for name in complete} for label, found in scores.items()}, [
        f"{', '.join(where)}: {why}" for why, where in problems.items()
    ]


def _named_only(model: Model, protocol: Protocol) -> ModelMeta:
    names = {"name": model.name, "revision": model.revision, "experiment_kwargs": protocol.variant}
    return ModelMeta.create_empty(overwrites=names)


def _score(result: TaskResult, task: mteb.AbsTask) -> float:
    return float(result.validate_and_filter_scores(task).get_score())


def _submit(model: Model, task: mteb.AbsTask, found: TaskResult | None, protocol: Protocol) -> Any:
    options = {"num_cpus": protocol.num_cpus, "num_gpus": protocol.num_gpus}
    return _measure.options(**options).remote(model, task, found, protocol)


@ray.remote
def _measure(
    model: Model, task: mteb.AbsTask, found: TaskResult | None, protocol: Protocol
) -> tuple[TaskResult, ModelMeta]:
    """One model on one task; `found` holds the splits and languages that are measured already."""
    encoder = SentenceTransformerEncoderWrapper(_load(model.uri, "cuda" if protocol.num_gpus else "cpu"))
    if protocol.query_template:
        encoder.model_prompts = instructed(encoder, task, protocol.query_template)
    meta = encoder.mteb_model_meta = _describe(encoder.model, model, protocol)
    options: Any = {"batch_size": protocol.batch_size, "show_progress_bar": False}
    with tempfile.TemporaryDirectory() as scratch:
        cache = mteb.ResultCache(scratch)
        if found:
            cache.save_to_cache(found, meta)
        try:
            measured = mteb.evaluate(
                encoder, task, cache=cache, encode_kwargs=options, show_progress_bar=False, public_only=False
            )
        except (ConnectionError, DatasetNotFoundError) as error:
            raise BoomError(
                f"its data, {task.metadata.dataset['path']}, is not at hand: {error}. Run where the hub can "
                "be reached, with a token that may read it (HF_TOKEN); what is in the hub's cache is enough"
            ) from error
        except BoomError:
            raise
        except Exception as error:  # one task of a hundred must not take the others with it
            raise BoomError(f"mteb failed: {type(error).__name__}: {error}") from error
    return measured.task_results[0], meta


@lru_cache(maxsize=1)
def _load(uri: str, device: str) -> SentenceTransformer:
    """The model, kept for the next task that this process gets."""
    local = storage.local_directory(uri)
    directory.read_spec(local)
    if not os.path.isfile(os.path.join(local, "modules.json")):
        raise BoomError(f"{uri}: has no modules.json, by which sentence-transformers knows how a model pools")
    return SentenceTransformer(local, device=device, model_kwargs={"use_safetensors": True})


def instructed(
    encoder: SentenceTransformerEncoderWrapper, task: mteb.AbsTask, template: str
) -> dict[str, str]:
    """Prompts for one task: its instruction in the template, before everything but documents."""
    instruction = encoder.get_instruction(task.metadata, PromptType.query)
    kind, prompt = task.metadata.type, template.format(instruction=instruction, query="")
    return {kind: prompt, f"{kind}-query": prompt, f"{kind}-document": ""}


def _describe(encoder: SentenceTransformer, model: Model, protocol: Protocol) -> ModelMeta:
    """What mteb's results repository asks of a model."""
    record = None if storage.is_hub(model.uri) else artifacts.read_record(model.uri)
    weights = [(weight.numel(), weight.element_size()) for weight in encoder.parameters()]
    known = {
        "name": model.name,
        "revision": model.revision,
        "experiment_kwargs": protocol.variant,
        "release_date": record.created[:10] if record else None,
        "n_parameters": sum(count for count, _ in weights),
        "memory_usage_mb": round(sum(count * size for count, size in weights) / 2**20),
        "license": directory.license_of(storage.local_directory(model.uri)),
        "use_instructions": bool(protocol.query_template or any(encoder.prompts.values())),
        "reference": f"https://huggingface.co/{model.name}" if storage.is_hub(model.uri) else None,
    }
    return ModelMeta.from_sentence_transformer_model(encoder).model_copy(update=known)
