"""The model directory: sentence-transformers, transformers, TEI and vLLM load it with equal results.

`1_Pooling/config.json` is written in its older form, with all booleans: TEI rejects the newer form, and older
vLLM silently falls back to another pooling.
"""

import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from boom_ray import artifacts, storage
from boom_ray.artifacts.record import CARD, DISTANCES, Parent
from boom_ray.artifacts.record_file import RECORD
from boom_ray.errors import BoomError, InputError, first_line
from boom_ray.model import adapter, files, modules
from boom_ray.model import tokenizer as tokenizers
from boom_ray.model.limits import DIMENSION_KEYS, limits_of
from boom_ray.model.spec import EncoderSpec
from boom_ray.recipe import BaseModelSource, Data, Pooling, Train

if TYPE_CHECKING:  # merging imports this module, and starts twice as fast without torch and transformers
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

    from boom_ray.model.encoder import Encoder

DECODERS = ("ForCausalLM", "GPT2LMHeadModel")
logger = logging.getLogger(__name__)
NOT_COPIED = (CARD, RECORD, DISTANCES, adapter.CONFIG, files.CONFIG, files.ADAPTED_CONFIG)
COPIED_SUFFIXES = (".json", ".txt", ".model", ".jinja")


class _TokenizerLimit(files.ModelFile):
    model_max_length: float | None = None

    @property
    def length(self) -> int | None:
        """The limit in tokens; transformers writes 1e30 for none."""
        return int(self.model_max_length) if self.model_max_length and self.model_max_length < 1e9 else None


def read_spec(directory: str, source: BaseModelSource | None = None) -> EncoderSpec:
    """Read pooling, maximum length and prompts of a local model directory.

    Args:
        source: Its `pooling` and `max_length` take precedence over the sentence-transformers files of the
            directory; the last default is last-token pooling for a causal decoder.

    Raises:
        InputError: if the directory is not a model, uses unsupported modules, settings or its own code, or
            does not define the pooling.
    """
    config = files.read_config(directory)
    listed = modules.read_modules(directory)
    transformer, prompting = modules.read_transformer(directory), modules.read_prompts(directory)
    pooling = modules.read_pooling(directory, listed)
    limits = limits_of(config)
    limits.check(directory, {"base_model.max_length": source.max_length if source else None})
    declared = transformer.max_seq_length
    undeclared = [files.read(directory, "tokenizer_config.json", _TokenizerLimit).length, limits.context]
    lengths = [declared, limits.positions] if declared else undeclared
    max_length = min((length for length in lengths if length), default=512)
    return EncoderSpec(
        pooling=(source and source.pooling) or pooling.pooling or _default_pooling(directory, config),
        max_length=(source and source.max_length) or max_length,
        prompts=prompting.prompts,
        default_prompt_name=prompting.default_prompt_name,
        include_prompt=pooling.include_prompt,
        lowercase=transformer.do_lower_case,
    )


def load_encoder(directory: str, source: BaseModelSource | None = None, **options: Any) -> "Encoder":
    """Load the model in a local directory; `options` are those of `Encoder.load`.

    Raises:
        InputError: if it cannot be loaded, with the loader's reason.
    """
    from boom_ray.model.encoder import Encoder

    spec = read_spec(directory, source)
    try:
        return Encoder.load(directory, spec, **options)
    except BoomError:
        raise
    except (OSError, ValueError, KeyError, ImportError, SafetensorError) as error:
        raise InputError(f"{directory}: cannot be loaded as a model: {first_line(error)}") from error


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
        directory: A local directory. If it holds an adapter, that stays the only weights.
        base_directory: The base model. Its `architectures` are kept, because servers choose their
            implementation by them.
        prompts: Prefixes of inputs, by name; texts for which none is chosen get none.
        max_length: Maximum input length in tokens.
        state: Weights to write instead of those in `encoder.transformer`, all of one floating-point type.
        matryoshka: Lengths to which embeddings can be truncated.
    """
    base, config = files.read_config(base_directory), encoder.transformer.config
    if adapter.is_adapter(directory):
        config.save_pretrained(directory)
        os.rename(os.path.join(directory, files.CONFIG), os.path.join(directory, files.ADAPTED_CONFIG))
    else:
        encoder.transformer.save_pretrained(directory, state_dict=state, max_shard_size="4GB")
    written = files.read_config(directory)
    written["architectures"] = base.get("architectures") or [type(encoder.transformer).__name__]
    if state:
        dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
        written["dtype"] = str(dtype).removeprefix("torch.")
    if matryoshka:
        written["matryoshka_dimensions"] = sorted(matryoshka)  # the key that vLLM reads
    spec = replace(encoder.spec, max_length=max_length, prompts=prompts, default_prompt_name=None)
    _write_settings(directory, written, encoder.tokenizer, spec, encoder.dimension)


def _write_settings(
    directory: str,
    config: dict[str, Any],
    tokenizer: "PreTrainedTokenizerBase",
    spec: EncoderSpec,
    dimension: int,
) -> None:
    """Write configuration, tokenizer and modules; the model gets the padding token of the tokenizer."""
    tokenizers.save(tokenizer, directory)
    if config.get("pad_token_id") is None:
        config["pad_token_id"] = tokenizer.pad_token_id
    _write_config(directory, config)
    modules.write(directory, spec, dimension)


def _write_config(directory: str, config: dict[str, Any]) -> None:
    name = files.ADAPTED_CONFIG if adapter.is_adapter(directory) else files.CONFIG
    files.write_json(directory, name, config)


def copy_all_but_weights(source: str, target: str, dtype: str) -> None:
    """Copy configuration, tokenizer, pooling and prompts, which a merged model shares with its inputs.

    Args:
        source: URI of a model directory.
        target: Local directory, which may hold the settings of an adapter.
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
    config = files.read_config(source)
    config.pop("torch_dtype", None)
    _write_config(target, {**config, "dtype": dtype})


def complete(directory: str) -> None:
    """Write the files from which sentence-transformers computes what is computed here, if they are missing.

    Without `modules.json` it renders texts with the chat template of a decoder, if there is one, and appends
    no end token. A directory whose pooling is unknown stays as it is.

    Args:
        directory: A local model directory, which may lack the weights.
    """
    if not os.path.isfile(os.path.join(directory, "tokenizer_config.json")):
        return
    if os.path.isfile(os.path.join(directory, "modules.json")):
        return
    try:
        spec = read_spec(directory)
        tokenizer, dimension = tokenizers.load(directory, spec), dimension_of(directory)
    except InputError as error:
        logger.info("published without the files of sentence-transformers: %s", error)
        return
    _write_settings(directory, files.read_config(directory), tokenizer, spec, dimension)


def _default_pooling(directory: str, config: dict[str, Any]) -> Pooling:
    if any(name.endswith(DECODERS) for name in config.get("architectures") or []):
        return "lasttoken"
    raise InputError(
        f"{directory}: this {config['model_type']} model does not define its pooling. "
        "Set base_model.pooling to mean (E5, MiniLM), cls (BGE) or lasttoken (decoders)"
    )


def prompts_of(data: Data, base: EncoderSpec) -> dict[str, str]:
    """The prompts of a published model: `query`, `document`, and one per task.

    Args:
        base: Settings of the base model, whose prompt of documents is kept unless the recipe has one.
    """
    document = base.document_prompt if data.document_prompt is None else data.document_prompt
    tasks = {task.name: data.prompt(task) for task in data.tasks}
    return {"query": data.prompt(), "document": document} | tasks


def license_of(uri: str) -> str | None:
    """The license in the card of a model, or None if the card is missing, unreadable, or states none."""
    license_name = files.read_front_matter(storage.local_directory(uri) if storage.is_hub(uri) else uri).get(
        "license"
    )
    return license_name if isinstance(license_name, str) else None


def identify(uri: str) -> Parent:
    """The identity of a model by content: from its record, or from the hashes of its files.

    Raises:
        InputError: if there is no model at `uri`.
    """
    record = None if storage.is_hub(uri) else artifacts.read_record(uri)
    if record is not None:
        return record.as_parent()
    local = storage.local_directory(uri)
    if not adapter.is_adapter(local):
        files.read_config(local)
    names = [name for name in storage.list_files(local) if name.endswith((".safetensors", ".json", ".txt"))]
    hashes = {name: artifacts.hash_file(storage.join(local, name)).xxh3_128 for name in names}
    return Parent(name=storage.name_of(uri), version="base", digest=artifacts.fingerprint(hashes))


def dimension_of(directory: str) -> int:
    """Length of the embeddings of a local model directory.

    Raises:
        InputError: if its configuration does not say.
    """
    dimension = limits_of(files.read_config(directory)).dimension
    if dimension is None:
        raise InputError(
            f"{directory}: config.json has no size of hidden states; expected one of "
            f"{', '.join(DIMENSION_KEYS)}"
        )
    return dimension


def check_base(source: BaseModelSource, train: Train) -> None:
    """Check the lengths and dimensions that a recipe wants against the configuration of its base model.

    The default lengths of training may exceed the model: they are limited to what it can take.

    Raises:
        InputError: if the model has fewer positions, or fewer dimensions.
    """
    uri = storage.local_directory(source.path) if storage.is_hub(source.path) else source.path
    lengths = {"base_model.max_length": source.max_length}
    for key in ("query_max_length", "passage_max_length"):
        if getattr(train, key) != Train.model_fields[key].default:
            lengths[f"train.{key}"] = getattr(train, key)
    limits_of(files.read_config(uri)).check(source.path, lengths, train.matryoshka)
