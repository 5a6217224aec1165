"""Tasks measured by mteb with the model as sentence-transformers loads it; the results are mteb's files."""

import os
import tempfile
from dataclasses import dataclass
from typing import Any

import mteb
from datasets.exceptions import DatasetNotFoundError
from mteb.models import ModelMeta
from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper
from mteb.types import PromptType
from sentence_transformers import SentenceTransformer

from boom_ray import artifacts, storage
from boom_ray.errors import BoomError, InputError, StorageError
from boom_ray.evaluation import mteb_results
from boom_ray.evaluation.local_tasks import LocalTask
from boom_ray.evaluation.mteb_results import MtebResult
from boom_ray.evaluation.mteb_tasks import counts_of, local, named
from boom_ray.evaluation.protocol import EvaluationProtocol, EvaluationTask, Measurement, Subject
from boom_ray.model import adapter, directory
from boom_ray.model.inference import precision
from boom_ray.runs.scores import MAIN_SCORE


@dataclass(frozen=True)
class MtebEvaluationTask(EvaluationTask[MtebResult]):
    """A task of mteb, or a local one as mteb measures it; reports the main score."""

    task: mteb.AbsTask

    def load(self, subject: Subject, protocol: EvaluationProtocol) -> SentenceTransformer:
        """See `EvaluationTask.load`."""
        local_path = storage.local_directory(subject.uri)
        directory.read_spec(local_path)
        if not os.path.isfile(os.path.join(local_path, "modules.json")):
            raise InputError(
                f"{subject.uri}: no modules.json, in which sentence-transformers finds the pooling of a model"
            )
        base = adapter.is_adapter(local_path) and adapter.read_config(local_path).base_model_name_or_path
        if base and not storage.is_local(base):
            raise InputError(
                f"{subject.uri}: is an adapter of {base}, which sentence-transformers cannot read. Measure "
                "the merged model"
            )
        dtype = precision(protocol.device)
        model = SentenceTransformer(
            local_path, device=protocol.device, model_kwargs={"use_safetensors": True, "dtype": dtype}
        )
        if protocol.max_length:
            model.max_seq_length = protocol.max_length
        return model

    def run(
        self,
        model: SentenceTransformer,
        subject: Subject,
        protocol: EvaluationProtocol,
        partial: MtebResult | None,
    ) -> MtebResult:
        """See `EvaluationTask.run`; a partial result lacks splits or languages.

        Raises:
            StorageError: if the hub cannot be reached, or refuses access to the task's data.
            InputError: if mteb fails.
        """
        encoder = SentenceTransformerEncoderWrapper(model)
        if protocol.query_template:
            encoder.model_prompts = prompts_for(encoder, self.task, protocol.query_template)
        meta = encoder.mteb_model_meta = _describe(model, subject, protocol)
        with tempfile.TemporaryDirectory() as scratch:
            cache = mteb.ResultCache(scratch)
            if partial:
                cache.save_to_cache(partial.scores, meta)
            try:
                measured = mteb.evaluate(
                    encoder,
                    self.task,
                    cache=cache,
                    encode_kwargs={"batch_size": protocol.batch_size, "show_progress_bar": False},
                    show_progress_bar=False,
                    public_only=False,
                )
            except (ConnectionError, DatasetNotFoundError) as error:
                raise StorageError(
                    f"its data, {self.task.metadata.dataset['path']}, is not available: {error}. Run where "
                    "the hub can be reached, with a token that may read it (HF_TOKEN), or download it to the "
                    "hub's cache first"
                ) from error
            except BoomError:
                raise
            except Exception as error:  # one task of a hundred must not end the measurement of the others
                raise InputError(f"mteb failed: {type(error).__name__}: {error}") from error
        return MtebResult(measured.task_results[0], meta)

    def measurement(self, result: MtebResult) -> Measurement:
        """See `EvaluationTask.measurement`."""
        score = result.scores.validate_and_filter_scores(self.task).get_score()
        return Measurement({MAIN_SCORE: float(score)}, {}, counts_of(result.scores))

    def is_complete(self, result: MtebResult) -> bool:
        """See `EvaluationTask.is_complete`."""
        return not result.scores.get_missing_evaluations(self.task)

    def read_result(self, cache: str, subject: Subject, protocol: EvaluationProtocol) -> MtebResult | None:
        """See `EvaluationTask.read_result`."""
        meta = ModelMeta.create_empty(overwrites=_identity(subject, protocol))
        scores = mteb_results.read(cache, self.task, meta)
        return MtebResult(scores, meta) if scores else None

    def write_result(
        self, cache: str, subject: Subject, protocol: EvaluationProtocol, result: MtebResult
    ) -> None:
        """See `EvaluationTask.write_result`."""
        mteb_results.write(cache, result, {"batch_size": protocol.batch_size})


def tasks_named(names: tuple[str, ...]) -> list[MtebEvaluationTask]:
    """The tasks of mteb's benchmarks, and single ones, named `TYPE/NAME`; see `mteb_tasks.named`."""
    return [MtebEvaluationTask(f"{task.metadata.type}/{task.metadata.name}", task) for task in named(names)]


def through_mteb(tasks: list[LocalTask]) -> list[MtebEvaluationTask]:
    """Local tasks, measured like mteb's own."""
    return [MtebEvaluationTask(task.name, local(task)) for task in tasks]


def prompts_for(
    encoder: SentenceTransformerEncoderWrapper, task: mteb.AbsTask, template: str
) -> dict[str, str]:
    """Prompts for one task: its instruction in the template, and before documents the model's own prompt."""
    instruction = encoder.get_instruction(task.metadata, PromptType.query)
    document = encoder.model.prompts.get("document") or ""
    kind, prompt = task.metadata.type, template.format(instruction=instruction, query="")
    return {kind: prompt, f"{kind}-query": prompt, f"{kind}-document": document}


def _identity(subject: Subject, protocol: EvaluationProtocol) -> dict[str, Any]:
    """Name, revision and experiment, which select the folder of a model's result files.

    mteb stores results with other settings than the model's own as experiments, in folders of their own.
    """
    settings = {"query_template": protocol.query_template, "max_length": protocol.max_length}
    return {
        "name": subject.hub_name,
        "revision": subject.digest,
        "experiment_kwargs": {name: value for name, value in settings.items() if value} or None,
    }


def _describe(encoder: SentenceTransformer, subject: Subject, protocol: EvaluationProtocol) -> ModelMeta:
    """The facts that mteb's results repository requires about a model."""
    on_hub = storage.is_hub(subject.uri)
    record = None if on_hub else artifacts.read_record(subject.uri)
    weights = [(weight.numel(), weight.element_size()) for weight in encoder.parameters()]
    facts = {
        **_identity(subject, protocol),
        "release_date": record.created[:10] if record else None,
        "n_parameters": sum(count for count, _ in weights),
        "memory_usage_mb": round(sum(count * size for count, size in weights) / 2**20),
        "license": directory.license_of(storage.local_directory(subject.uri)),
        "use_instructions": bool(protocol.query_template or any(encoder.prompts.values())),
        "reference": f"https://huggingface.co/{subject.hub_name}" if on_hub else None,
    }
    return ModelMeta.from_sentence_transformer_model(encoder).model_copy(update=facts)
