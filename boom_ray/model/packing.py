"""The choice between padded and packed batches of a model.

`attention: auto` packs on GPUs with the flash kernel, if the weights are of half precision and the model
computes the same vectors so. A model whose attention has a bias, whose layers mix neighbouring tokens in
another way, or which ignores position ids, computes others, and stays padded.
"""

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from boom_ray.errors import InputError
from boom_ray.model.limits import POSITIONS_START_BEHIND_PADDING
from boom_ray.model.packed_attention import NAME, UnsupportedAttentionError
from boom_ray.model.packed_layout import PackedLayout
from boom_ray.model.tokens import Tokens
from boom_ray.recipe.execution import Attention

if TYPE_CHECKING:
    from boom_ray.model.encoder import Encoder

logger = logging.getLogger(__name__)

FIRST_CAPABILITY = (8, 0)  # Ampere, the first GPU of the flash kernel
HALF = (torch.bfloat16, torch.float16)
PROBE = (3, 1, 7, 2, 12)  # lengths of the texts that are computed both ways
MIN_COSINE, MIN_COSINE_OF_HALF = 0.99999, 0.98  # between the vectors of a text


def pack(encoder: "Encoder", attention: Attention) -> None:
    """Let an encoder run packed, if that is what `attention` means for it.

    - `auto`: with the kernel of torch on GPUs that have it, in half precision, if the model allows it;
    - `varlen`: with that kernel; on CPUs with its reference, which is slow;
    - `flash_attention_2`: with the package flash-attn.

    Raises:
        InputError: if `varlen` is wanted, and the model does not allow it.
    """
    name = attention if attention == "flash_attention_2" else NAME
    if name == NAME and attention != "varlen" and not (attention == "auto" and _has_kernel(encoder)):
        return
    reason = _obstacle(encoder, name)
    if not reason:
        encoder.transformer.set_attn_implementation(name)
        encoder.layout = _packed_layout(encoder)
    elif attention == "varlen":
        raise InputError(
            f"train.execution.attention: got varlen, but {type(encoder.transformer).__name__} cannot run "
            f"packed: {reason}. Set it to auto"
        )
    else:
        logger.info("%s runs padded: %s", type(encoder.transformer).__name__, reason)


def _has_kernel(encoder: "Encoder") -> bool:
    if encoder.device.type != "cuda" or encoder.transformer.dtype not in HALF:
        return False
    return torch.cuda.get_device_capability(encoder.device) >= FIRST_CAPABILITY


def _packed_layout(encoder: "Encoder") -> PackedLayout:
    config = encoder.transformer.config
    behind_padding = config.model_type in POSITIONS_START_BEHIND_PADDING
    first = (1 if config.pad_token_id is None else config.pad_token_id) + 1 if behind_padding else 0
    return PackedLayout(encoder.spec.pooling, first, encoder.layout.causal)


def _obstacle(encoder: "Encoder", name: str) -> str:
    """The reason why an encoder must stay padded, or an empty text; the encoder is as before.

    Args:
        name: Implementation of attention in packed batches.
    """
    transformer, padded = encoder.transformer, encoder.layout
    if not transformer._supports_attention_backend:
        return "its class does not use the attention interface of transformers"
    tokens, unpacked = _probe(encoder), transformer.config._attn_implementation
    reversed_first = replace(tokens, ids=np.append(tokens.ids[: PROBE[0]][::-1], tokens.ids[PROBE[0] :]))
    expected = encoder.encode_tokens(tokens)
    try:
        transformer.set_attn_implementation(name)
        encoder.layout = _packed_layout(encoder)
        found = encoder.encode_tokens(tokens)
        others = encoder.encode_tokens(reversed_first)
    except UnsupportedAttentionError as error:
        return str(error)
    finally:
        transformer.set_attn_implementation(unpacked)
        encoder.layout = padded
    if not np.array_equal(found[1:], others[1:]):
        return "the vector of a text depends on the text before it"
    cosine = float((found * expected).sum(1).min())
    least = MIN_COSINE if transformer.dtype == torch.float32 else MIN_COSINE_OF_HALF
    return "" if cosine >= least else f"its packed and padded vectors have a cosine of {cosine:.4f}"


def _probe(encoder: "Encoder") -> Tokens:
    """Short texts of distinct ids, without that of the padding."""
    embeddings: Any = encoder.transformer.get_input_embeddings()
    size, pad = embeddings.num_embeddings, encoder.tokenizer.pad_token_id
    lengths = np.minimum(PROBE, encoder.spec.max_length)
    ids = 7 * np.arange(1, lengths.sum() + 1) % size
    return Tokens(np.where(ids == pad, (pad or 0) + 1, ids).astype(np.int32) % size, lengths, 0 * lengths)
