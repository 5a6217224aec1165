"""The transformer of a base model: its class, its attention, and only weights that its files hold.

`AutoModel` alone would complete what a file lacks with random weights, without an error: a pooler for a
model that was saved with a language modelling head, a decoder for the encoder of a T5.
"""

import torch
import transformers
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_MAPPING

from boom_ray.errors import InputError, first_line
from boom_ray.recipe.execution import Attention

# As sentence-transformers loads them (its Transformer module); `AutoModel` would load the decoder as well.
ENCODERS = {"t5": "T5EncoderModel", "mt5": "MT5EncoderModel", "umt5": "UMT5EncoderModel"}
ENCODERS |= {"longt5": "LongT5EncoderModel"}
POOLER = "pooler"
LIBRARY_CHOICE = ("auto", "varlen")
LISTED = 3  # missing weights that an error names


def load_transformer(directory: str, dtype: torch.dtype, attention: Attention) -> PreTrainedModel:
    """Load the transformer of a local directory, without a head: safetensors only, no code of the directory.

    A pooler that the files lack is left out; no pooling uses it.

    Args:
        attention: Implementation of attention; for `auto` and `varlen`, which is set later, sdpa if the class
            supports it, else eager.

    Raises:
        InputError: if the class does not support the attention, or is an encoder-decoder other than T5; if
            the files lack weights of the model.
        OSError: if the directory has no safetensors weights.
    """
    config = AutoConfig.from_pretrained(directory)
    loader = getattr(transformers, ENCODERS[config.model_type]) if config.model_type in ENCODERS else None
    if loader is None and getattr(config, "is_encoder_decoder", False):
        raise InputError(
            f"{directory}: {config.model_type} is an encoder-decoder; allowed: encoders, decoders, and "
            f"{', '.join(ENCODERS)}, of which the encoder is used. Choose another base_model.path"
        )
    _check_attention(loader or _class_of(config), attention)
    try:
        transformer, report = (loader or AutoModel).from_pretrained(
            directory,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation=None if attention in LIBRARY_CHOICE else attention,
            output_loading_info=True,
        )
    except ImportError as error:
        raise InputError(
            f"train.execution.attention: got {attention}: {first_line(error)} Set it to auto"
        ) from error
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # shapes other than the configuration states
        raise InputError(f"{directory}: cannot be loaded as a model: {first_line(error)}") from error
    _leave_out_pooler(transformer, report["missing_keys"], directory)
    return transformer


def _class_of(config: transformers.PretrainedConfig) -> type[PreTrainedModel] | None:
    """The class that `AutoModel` would choose; None if it depends on more than the type of model."""
    found = MODEL_MAPPING.get(type(config), None)
    return found if isinstance(found, type) else None


def _check_attention(loader: type[PreTrainedModel] | None, attention: Attention) -> None:
    """Refuse an attention that the class lacks; its attributes say which it has."""
    if loader is None or attention in ("auto", "eager"):
        return
    optional = {
        "sdpa": loader._supports_sdpa,
        "flash_attention_2": loader._supports_flash_attn,
        "varlen": loader._supports_attention_backend,
    }
    if not optional[attention]:
        allowed = ["auto", "eager", *(name for name, supported in optional.items() if supported)]
        raise InputError(
            f"train.execution.attention: got {attention}, which {loader.__name__} does not support; "
            f"allowed: {', '.join(allowed)}"
        )


def _leave_out_pooler(transformer: PreTrainedModel, missing: set[str], directory: str) -> None:
    """Remove a pooler that was not in the files, so that it is not published.

    Raises:
        InputError: if they lack more than a pooler.
    """
    others = sorted(name for name in missing if not name.startswith(f"{POOLER}."))
    if others:
        shown = ", ".join(others[:LISTED]) + (", ..." if len(others) > LISTED else "")
        raise InputError(
            f"{directory}: {type(transformer).__name__} has {len(others)} weights that the files lack, and "
            f"would start with random ones: {shown}. Choose a complete model as base_model.path"
        )
    if missing:
        setattr(transformer, POOLER, nn.Identity())  # every class can call it
