"""The model directory: sentence-transformers, transformers, TEI and vLLM load it with equal results.

`1_Pooling/config.json` is written in its older form, with all booleans: TEI rejects the newer form, and older
vLLM silently falls back to another pooling.
"""

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, cast

from huggingface_hub import ModelCard
from safetensors import SafetensorError

from boom_ray import artifacts, storage
from boom_ray.artifacts.record import CARD, DISTANCES, RECORD, Parent
from boom_ray.errors import InputError
from boom_ray.model import tokenizer as tokenizers
from boom_ray.model.limits import DIMENSION_KEYS, limits_of
from boom_ray.model.spec import EncoderSpec
from boom_ray.recipe import BaseModelSource, Data, Pooling

if TYPE_CHECKING:  # merging imports this module, and starts twice as fast without torch and transformers
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
NOT_COPIED = (CARD, RECORD, DISTANCES)
COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja")


def read_spec(directory: str, source: BaseModelSource | None = None) -> EncoderSpec:
    """Read pooling, maximum length and prompts of a local model directory.

    Args:
        source: Its `pooling` and `max_length` take precedence over the sentence-transformers files of the
            directory; the last default is last-token pooling for a causal decoder.

    Raises:
        InputError: if the directory is not a model, uses unsupported modules or its own code, or does not
            define the pooling.
    """
    config = _read_config(directory)
    check_modules(directory, _read_json(directory, "modules.json") or [])
    limits = limits_of(config)
    limits.check(directory, source.max_length if source else None)
    pooling = (source and source.pooling) or _read_pooling(directory) or _default_pooling(directory, config)
    transformer = _read_json(directory, "sentence_bert_config.json")
    tokenizer = _read_json(directory, "tokenizer_config.json")
    declared = transformer.get("max_seq_length")
    undeclared = [tokenizer.get("model_max_length"), limits.context]
    lengths = [declared, limits.positions] if declared else undeclared
    max_length = min((int(length) for length in lengths if length), default=512)
    prompts = _read_json(directory, "config_sentence_transformers.json").get("prompts") or {}
    return EncoderSpec(pooling, (source and source.max_length) or max_length, prompts)


def load_encoder(directory: str, source: BaseModelSource | None = None, **options: Any) -> "Encoder":
    """Load the model in a local directory; `options` are those of `Encoder.load`.

    Raises:
        InputError: if it cannot be loaded, with the loader's reason.
    """
    from boom_ray.model.encoder import Encoder

    spec = read_spec(directory, source)
    try:
        return Encoder.load(directory, spec, **options)
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise InputError(f"{directory}: cannot be loaded as a model: {str(error).splitlines()[0]}") from error


def save(
    encoder: "Encoder",
    directory: str,
    base_directory: str,
    prompts: dict[str, str],
    max_length: int,
    state: "dict[str, Tensor] | None" = None,
    matryoshka: Sequence[int] = (),
) -> None:
    """Write all files of a published model except the card and the record.

    Args:
        base_directory: The base model. Its `architectures` are kept, because servers choose their
            implementation by them.
        prompts: Prefixes of inputs, by name.
        max_length: Maximum input length in tokens.
        state: Weights to write instead of those in `encoder.transformer`.
        matryoshka: Lengths to which embeddings can be truncated.
    """
    encoder.transformer.save_pretrained(directory, state_dict=state, max_shard_size="4GB")
    config = _read_json(directory, "config.json")
    config["architectures"] = _read_config(base_directory).get("architectures", config["architectures"])
    if matryoshka:
        config["matryoshka_dimensions"] = sorted(matryoshka)  # the key that vLLM reads
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
    """Copy configuration, tokenizer, pooling and prompts, which a merged model shares with its inputs.

    Args:
        source: URI of a model directory.
        target: Local directory.
        dtype: Name of the torch dtype that the target's configuration declares.
    """
    for name in storage.list_files(source):
        if (
            name in NOT_COPIED
            or not name.endswith(COPIED_SUFFIXES)
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
    path = storage.join(directory, name)
    if not storage.is_file(path):
        return {}
    try:
        return json.loads(storage.read_bytes(path))
    except ValueError as error:
        raise InputError(f"{path}: not valid JSON: {error}") from error


def _write_json(directory: str, name: str, content: Any) -> None:
    path = os.path.join(directory, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def _read_config(directory: str) -> dict[str, Any]:
    config = _read_json(directory, "config.json")
    if "model_type" not in config:
        raise InputError(f"{directory}: not a model: it has no config.json with a model_type")
    return config


def check_modules(directory: str, modules: list[dict[str, Any]]) -> None:
    """Reject a `modules.json` with other modules than ours, or with the directory's own code.

    Raises:
        InputError: with the name of the module.
    """
    for module in modules:
        package, _, name = module["type"].rpartition(".")
        if not package.startswith("sentence_transformers.") or name not in MODULES:
            raise InputError(
                f"{directory}: modules.json contains {module['type']}; allowed: {', '.join(MODULES)} of "
                "sentence_transformers. Code in a model directory is never run"
            )


def _read_pooling(directory: str) -> Pooling | None:
    config = _read_json(directory, "1_Pooling/config.json")
    modes = [name for name, flag in POOLING_FLAGS.items() if config.get(flag)]
    modes += [config["pooling_mode"]] if isinstance(config.get("pooling_mode"), str) else []
    if not modes:
        return None
    if len(modes) > 1 or modes[0] not in ("mean", "cls", "lasttoken"):
        raise InputError(f"{directory}: pooling {', '.join(modes)}; allowed: one of mean, cls, lasttoken")
    return cast(Pooling, modes[0])


def _default_pooling(directory: str, config: dict[str, Any]) -> Pooling:
    if any(name.endswith("ForCausalLM") for name in config.get("architectures") or []):
        return "lasttoken"
    raise InputError(
        f"{directory}: this {config['model_type']} model does not define its pooling. "
        "Set base_model.pooling to mean (E5, MiniLM), cls (BGE) or lasttoken (decoders)"
    )


def prompts_of(data: Data) -> dict[str, str]:
    """The prompts of a published model: `query`, `document`, and one per task."""
    general = data.query_template.format(instruction=data.instruction, query="")
    return {"query": general, "document": ""} | {task.name: data.prompt(task) for task in data.tasks}


def license_of(uri: str) -> str | None:
    """The license in the card of a model, or None."""
    card = storage.join(storage.local_directory(uri) if storage.is_hub(uri) else uri, CARD)
    if not storage.is_file(card):
        return None
    return ModelCard(storage.read_bytes(card).decode()).data.get("license")


def identify(uri: str) -> Parent:
    """The identity of a model by content: from its record, or from the hashes of its files.

    Raises:
        InputError: if there is no model at `uri`.
    """
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
    """Length of the embeddings of a local model directory.

    Raises:
        InputError: if its configuration does not say.
    """
    dimension = limits_of(_read_config(directory)).dimension
    if dimension is None:
        raise InputError(
            f"{directory}: config.json has no size of hidden states; expected one of "
            f"{', '.join(DIMENSION_KEYS)}"
        )
    return dimension


def check_base(source: BaseModelSource, matryoshka: Sequence[int]) -> None:
    """Check the lengths and dimensions that a recipe wants against the configuration of its base model.

    Raises:
        InputError: if the model has fewer positions, or fewer dimensions.
    """
    uri = storage.local_directory(source.path) if storage.is_hub(source.path) else source.path
    limits_of(_read_config(uri)).check(source.path, source.max_length, matryoshka)
