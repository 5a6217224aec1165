"""The published model directory: sentence-transformers, transformers, TEI and vLLM load it with the same
result.

`1_Pooling/config.json` is written in its older form, with all the booleans: TEI refuses the newer form, and
older vLLM silently pools differently when it meets it.
"""

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import ModelCard
from safetensors import SafetensorError

from boom_ray import artifacts, storage
from boom_ray.artifacts.record import Parent
from boom_ray.errors import BoomError
from boom_ray.model import tokenizer as tokenizers
from boom_ray.model.spec import EncoderSpec
from boom_ray.recipe import BaseModelSource, Data, Pooling

if TYPE_CHECKING:  # a merge needs directories, and starts in half the time without torch and transformers
    from torch import Tensor

    from boom_ray.model.encoder import Encoder

POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
MODULES = ["Transformer", "Pooling", "Normalize"]
NOT_SHARED = ("README.md", "artifact.json", "distances.json")
SHARED_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def read_spec(directory: str, source: BaseModelSource | None = None) -> EncoderSpec:
    """What a local model directory says of its pooling, maximum length and prompts.

    Args:
        source: Its `pooling` and `max_length` come first; then the sentence-transformers files of the
            directory; then last-token pooling for a causal decoder.

    Raises:
        BoomError: if the directory is no model, wants code or modules that are not ours, or leaves the
            pooling open.
    """
    config = _read_config(directory)
    check_modules(directory, _read_json(directory, "modules.json") or [])
    pooling = (source and source.pooling) or _read_pooling(directory) or _default_pooling(directory, config)
    transformer = _read_json(directory, "sentence_bert_config.json")
    tokenizer = _read_json(directory, "tokenizer_config.json")
    limits = [config.get("max_position_embeddings"), tokenizer.get("model_max_length")]
    own = transformer.get("max_seq_length") or min((int(limit) for limit in limits if limit), default=512)
    prompts = _read_json(directory, "config_sentence_transformers.json").get("prompts") or {}
    return EncoderSpec(pooling, (source and source.max_length) or own, prompts)


def load_encoder(directory: str, source: BaseModelSource | None = None, **options: Any) -> "Encoder":
    """Load the model in a local directory; `options` are those of `Encoder.load`.

    Raises:
        BoomError: if it cannot be loaded, with the loader's reason.
    """
    from boom_ray.model.encoder import Encoder

    spec = read_spec(directory, source)
    try:
        return Encoder.load(directory, spec, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise BoomError(f"{directory}: cannot be loaded as a model: {str(error).splitlines()[0]}") from error


def save(
    encoder: "Encoder",
    directory: str,
    base_directory: str,
    prompts: dict[str, str],
    max_length: int,
    state: "dict[str, Tensor] | None" = None,
    matryoshka: Sequence[int] = (),
) -> None:
    """Write every file of a published model but the card and the record.

    Args:
        base_directory: The model this one was trained from; its `architectures` are kept, because servers
            choose their implementation by them.
        prompts: Text before an input, by name.
        max_length: Longest input in tokens.
        state: Weights to write instead of those in `encoder.transformer`.
        matryoshka: Lengths embeddings may be cut to.
    """
    encoder.transformer.save_pretrained(directory, state_dict=state, max_shard_size="4GB")
    config = _read_json(directory, "config.json")
    config["architectures"] = _read_config(base_directory).get("architectures", config["architectures"])
    if matryoshka:
        config["matryoshka_dimensions"] = sorted(matryoshka)  # as vLLM reads it
    _write_json(directory, "config.json", config)
    tokenizers.save(encoder.tokenizer, directory)
    dimension = encoder.transformer.config.hidden_size
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{module}"}
        for index, (path, module) in enumerate(zip(paths, MODULES, strict=True))
    ]
    flags = {flag: name == encoder.spec.pooling for name, flag in POOLING_FLAGS.items()}
    pooling = {"word_embedding_dimension": dimension, **flags, "include_prompt": True}
    prompting = {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine"}
    _write_json(directory, "modules.json", modules)
    _write_json(directory, "1_Pooling/config.json", pooling)
    _write_json(directory, "2_Normalize/config.json", {})
    _write_json(
        directory, "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False}
    )
    _write_json(directory, "config_sentence_transformers.json", prompting)


def copy_all_but_weights(source: str, target: str, dtype: str) -> None:
    """Copy what models of one family share: configuration, tokenizer, pooling and prompts.

    Args:
        source: URI of a model directory.
        target: A local directory.
        dtype: The torch dtype name that the target's configuration declares.
    """
    for name in storage.list_files(source):
        if (
            name in NOT_SHARED
            or not name.endswith(SHARED_SUFFIXES)
            or name.endswith(".safetensors.index.json")
        ):
            continue
        path = os.path.join(target, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "wb") as file:
            file.write(storage.read_bytes(storage.join(source, name)))
    config = _read_config(target)
    config.pop("torch_dtype", None)
    _write_json(target, "config.json", {**config, "dtype": dtype})


def _read_json(directory: str, name: str) -> Any:
    path = os.path.join(directory, name)
    if not os.path.isfile(path):
        return {}
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except ValueError as error:
        raise BoomError(f"{path}: not valid JSON: {error}") from error


def _write_json(directory: str, name: str, content: Any) -> None:
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def _read_config(directory: str) -> dict[str, Any]:
    config = _read_json(directory, "config.json")
    if "model_type" not in config:
        raise BoomError(f"{directory}: not a model: it has no config.json that names a model_type")
    return config


def check_modules(directory: str, modules: list[dict[str, Any]]) -> None:
    """Refuse the `modules.json` of a directory if it names code that is not ours to run.

    Raises:
        BoomError: naming the module.
    """
    for module in modules:
        package, _, name = module["type"].rpartition(".")
        if not package.startswith("sentence_transformers.") or name not in MODULES:
            raise BoomError(
                f"{directory}: modules.json names {module['type']}; allowed: {', '.join(MODULES)} of "
                "sentence_transformers. Code that comes with a model is never run"
            )


def _read_pooling(directory: str) -> Pooling | None:
    config = _read_json(directory, "1_Pooling/config.json")
    modes = [name for name, flag in POOLING_FLAGS.items() if config.get(flag)]
    modes += [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else []
    if not modes:
        return None
    if len(modes) > 1 or modes[0] not in ("mean", "cls", "lasttoken"):
        raise BoomError(f"{directory}: pooling {', '.join(modes)}; allowed: one of mean, cls, lasttoken")
    return cast(Pooling, modes[0])


def _default_pooling(directory: str, config: dict[str, Any]) -> Pooling:
    if any(name.endswith("ForCausalLM") for name in config.get("architectures") or []):
        return "lasttoken"
    raise BoomError(
        f"{directory}: a {config['model_type']} model that does not say how it pools. "
        "Set base_model.pooling to mean (E5, MiniLM), cls (BGE) or lasttoken (decoders)"
    )


def prompts_of(data: Data) -> dict[str, str]:
    """The prompts a model is published with: `query`, `document`, and one per task."""
    general = data.query_template.format(instruction=data.instruction, query="")
    return {"query": general, "document": ""} | {task.name: data.prompt(task) for task in data.tasks}


def license_of(uri: str) -> str | None:
    """The licence a model's card states, or None."""
    place = storage.join(uri, "README.md")
    return (
        ModelCard(storage.read_bytes(place).decode()).data.get("license") if storage.is_file(place) else None
    )


def identify(uri: str) -> Parent:
    """A model by its content: from its record, or from the hashes of its files."""
    record = None if storage.is_hub(uri) else artifacts.read_record(uri)
    if record is not None:
        return record.as_parent()
    local = storage.local_directory(uri)
    if not os.path.isfile(os.path.join(local, "adapter_config.json")):
        _read_config(local)
    names = [name for name in storage.list_files(local) if name.endswith((".safetensors", ".json", ".txt"))]
    hashes = {name: artifacts.hash_file(storage.join(local, name)).xxh3_128 for name in names}
    return Parent(name=storage.name_of(uri), version="base", digest=artifacts.fingerprint(hashes))


def dimension_of(directory: str) -> int:
    """Length of a model's embeddings."""
    return int(_read_config(directory)["hidden_size"])
