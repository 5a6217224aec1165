"""Whether two models compute the same function of their weights: `config.json` and pooling, by meaning."""

import re
from collections.abc import Iterable
from typing import Any

from boom_ray.errors import InputError, first_line
from boom_ray.model import files, modules

SHAPE_KEYS = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
#: Settings of training, generation, heads, limits and files: none changes the hidden states of a text.
WITHOUT_EFFECT = re.compile(
    "dropout|_pdrop|initializer|use_cache|_token_id$|tie_word_embeddings|max_position_embeddings|n_positions|"
    "max_window_layers|n_ctx|classifier|summary_|sparse_pred|decoder_bias|deterministic|gradient_checkpointing|"
    "_attn_implementation|pretraining_tp|final_logit_softcapping|^chunk_size|^output_|^(torch_)?dtype$|"
    "^(architectures|transformers_version|_name_or_path|id2label|label2id|auto_map|problem_type|return_dict|"
    "finetuning_task|matryoshka_dimensions|model_name|tokenizer_class|task_specific_params|sentence_transformers)$"
)


def config_differences(model: str, first: str) -> list[str]:
    """Settings of the architecture that differ.

    Keys that are absent have the defaults of transformers, which reads files of all ages into one form.

    Args:
        model: URI of a model directory.
        first: URI of the model directory it is compared with.

    Returns:
        One phrase for each difference.

    Raises:
        InputError: if a `config.json` cannot be read.
    """
    configs = [files.config_of(uri) for uri in (model, first)]
    found = _differing(configs[0], configs[1], SHAPE_KEYS)
    if found or _effective(configs[0]) == _effective(configs[1]):
        return found
    own, other = (_resolved(uri, config) for uri, config in zip((model, first), configs, strict=True))
    return _differing(own, other, own.keys() & other.keys())


def _differing(own: dict[str, Any], other: dict[str, Any], keys: Iterable[str]) -> list[str]:
    return [
        f"config.json: {key} is {own.get(key)}, not {other.get(key)}"
        for key in keys
        if own.get(key) != other.get(key)
    ]


def _effective(config: Any) -> Any:
    """A configuration, or a part of one, without the settings that have no effect."""
    if not isinstance(config, dict):
        return config
    return {key: _effective(value) for key, value in config.items() if not WITHOUT_EFFECT.search(str(key))}


def _resolved(model: str, config: dict[str, Any]) -> Any:
    """The effective settings as transformers reads them: all that the class of the configuration declares."""
    from transformers import PreTrainedConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = str(config.get("model_type"))
    if kind not in CONFIG_MAPPING:
        return _effective(config)
    try:
        loaded = CONFIG_MAPPING[kind].from_dict(dict(config)).to_dict()
    except Exception as error:  # a class checks its settings with errors of its own
        raise InputError(
            f"{model}: config.json cannot be read: {first_line(error)}. Fetch or publish the model again"
        ) from error
    declared = CONFIG_MAPPING[kind]().to_dict().keys() - PreTrainedConfig().to_dict().keys()
    return _effective({key: value for key, value in loaded.items() if key in declared})


def pooling_differences(model: str, first: str) -> list[str]:
    """Differences in how embeddings are made of hidden states, as far as both models state it.

    Args:
        model: URI of a model directory.
        first: URI of the model directory it is compared with.

    Raises:
        InputError: if a file cannot be read.
    """
    problems = []
    own, other = _pooling(model), _pooling(first)
    if own and other and own != other:
        problems.append(f"1_Pooling/config.json: {own}, not {other}")
    own, other = _modules(model), _modules(first)
    if own and other and own != other:
        problems.append(f"modules.json: {own}, not {other}")
    return problems


def _pooling(model: str) -> str:
    """Pooling and the use of prompts in words, equal for files of all ages; empty if not stated."""
    listed = modules.read_modules(model)
    path = next((module.path for module in listed if module.name == "Pooling"), "1_Pooling")
    config = files.read_object(model, f"{path}/config.json")
    if not config:
        return ""
    names = "+".join(map(str, modules.pooling_modes(config)))
    return names if config.get("include_prompt", True) else f"{names} without the prompt"


def _modules(model: str) -> str:
    """The modules of a model and their lowercasing, in words; empty if there is no `modules.json`."""
    names = " > ".join(module.name for module in modules.read_modules(model))
    return f"{names}, lowercased" if names and modules.read_transformer(model).do_lower_case else names
