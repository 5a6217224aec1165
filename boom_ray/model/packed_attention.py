"""Attention over several texts in one sequence, behind the attention interface of transformers.

On CUDA it is `torch.nn.attention.varlen.varlen_attn`, the flash kernel that torch itself contains. Elsewhere
each text attends to itself alone with `scaled_dot_product_attention`, the reference of the same interface.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface

NAME = "boom_ray_varlen"  # of the implementation in transformers
UNSUPPORTED = ("softcap", "s_aux", "position_bias")  # arguments that change scores, which the kernel lacks
MAX_HEAD_DIMENSION, HEAD_DIMENSION_STEP = 256, 8  # of the flash kernel


class UnsupportedAttentionError(Exception):
    """The model's attention has a term that the kernel lacks."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    max_length_q: int | None = None,
    **options: object,
) -> tuple[Tensor, None]:
    """Attention of a layer; the arguments are those of `transformers.AttentionInterface`.

    Args:
        query: [1, heads, T, d] of all texts, one after another.
        key: [1, key heads, T, d]; fewer heads are shared by groups of query heads.
        value: [1, key heads, T, d].
        attention_mask: Not used: the bounds of the texts are the mask.
        scaling: Factor on the scores.
        dropout: Must be 0.
        sliding_window: Number of keys to each side that a query attends to, itself included.
        is_causal: Whether tokens attend to earlier ones only; by default what the layer declares.
        cu_seq_lens_q: [n + 1] int32, start of each text, and T.
        max_length_q: Tokens of the longest text.

    Returns:
        [1, T, heads, d], and no weights.

    Raises:
        UnsupportedAttentionError: if a layer does not receive the bounds, or has dropout or another term.
    """
    if cu_seq_lens_q is None or max_length_q is None or dropout:
        raise UnsupportedAttentionError("the layer has dropout, or its model does not pass the bounds on")
    terms = [name for name in UNSUPPORTED if options.get(name) is not None]
    if terms:
        raise UnsupportedAttentionError(f"the layer has {', '.join(terms)}")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    window = -1 if sliding_window is None else sliding_window - 1
    bounds = (window, 0 if causal else window)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    if query.is_cuda:
        return _on_cuda(q, k, v, cu_seq_lens_q, max_length_q, scaling, bounds)[None], None
    starts = cu_seq_lens_q.tolist()
    texts = [slice(start, end) for start, end in pairwise(starts)]
    return torch.cat([_of_text(q[text], k[text], v[text], scaling, bounds) for text in texts])[None], None


def _on_cuda(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    starts: Tensor,
    longest: int,
    scaling: float | None,
    bounds: tuple[int, int],
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    dimension = query.shape[-1]
    if dimension > MAX_HEAD_DIMENSION or dimension % HEAD_DIMENSION_STEP:
        raise UnsupportedAttentionError(f"its heads have {dimension} dimensions")
    attended = varlen_attn(
        query,
        key,
        value,
        starts,
        starts,
        longest,
        longest,
        scale=scaling,
        window_size=bounds,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    assert isinstance(attended, Tensor)
    return attended


def _of_text(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, bounds: tuple[int, int]
) -> Tensor:
    """[length, heads, d] of one text; `bounds` are the keys before and after a query, -1 for all."""
    before, after = bounds
    length = len(query)
    distance = torch.arange(length)[None] - torch.arange(length)[:, None]  # of key from query
    mask = torch.ones(length, length, dtype=torch.bool)
    if before >= 0:
        mask &= distance >= -before
    if after >= 0:
        mask &= distance <= after
    q, k, v = (states.transpose(0, 1)[None] for states in (query, key, value))
    gqa = query.shape[1] != key.shape[1]
    attended = scaled_dot_product_attention(q, k, v, mask.to(q.device), scale=scaling, enable_gqa=gqa)
    return attended[0].transpose(0, 1)


# No function for masks is registered: transformers then makes none, and does not look for packed texts in
# position ids, which would wait for the device in every forward pass.
AttentionInterface.register(NAME, packed_attention)
