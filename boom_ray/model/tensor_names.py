"""Names of tensors that mean the same: prefixes, and what takes no part in an embedding.

The same encoder is saved as `embeddings.…` by `BertModel`, as `bert.embeddings.…` together with heads by
`BertForMaskedLM`, and with or without its pooler and its buffers, depending on class and age of the library.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from boom_ray.artifacts.tensors import TensorPlace

Places = Mapping[str, TensorPlace]
CAUSAL_HEAD = "lm_head.weight"
#: Heads, which are not part of the encoder and keep their names.
HEAD = re.compile(
    r"(cls|lm_head|classifier|pre_classifier|score|qa_outputs|vocab_(transform|layer_norm|projector)|"
    r"(mask|lm|generator|discriminator)_predictions|generator_lm_head)\."
)
#: Tensors that no embedding depends on: heads, the pooler behind the last layer, and computed buffers.
NO_PART = re.compile(
    rf"{HEAD.pattern}|pooler\.|(.*\.)?(position_ids|token_type_ids|rotary_emb\.inv_freq|masked_bias)$|"
    r"h\.\d+\.attn\.bias$"  # the causal mask of GPT-2
)


def plain_names(names: Iterable[str]) -> list[str]:
    """Names without the components that all tensors of the encoder start with; heads keep theirs."""
    names = list(names)
    encoder = [name.split(".") for name in names if not HEAD.match(name)]
    shared = 0
    while (
        len(encoder) > 1
        and all(len(parts) > shared + 1 for parts in encoder)
        and len({parts[shared] for parts in encoder}) == 1
    ):
        shared += 1
    return [name if HEAD.match(name) else ".".join(name.split(".")[shared:]) for name in names]


def plain_places(places: Places) -> dict[str, TensorPlace]:
    """Tensors by their plain names."""
    return dict(zip(plain_names(places), places.values(), strict=True))


def left_out(models: Sequence[Places]) -> set[str]:
    """Plain names of tensors that take no part in an embedding, and that not all models have alike.

    Args:
        models: Tensors of each model, by plain name.
    """
    optional = {name for places in models for name in places if NO_PART.match(name) and name != CAUSAL_HEAD}
    return {name for name in optional if not _is_alike([places.get(name) for places in models])}


def _is_alike(found: list[TensorPlace | None]) -> bool:
    """Whether all models have a tensor, of one shape, and can be merged in it."""
    places = [place for place in found if place is not None]
    kinds = {(place.shape, place.is_floating or place.dtype) for place in places}
    return len(places) == len(found) and len(kinds) == 1


def aligned(found: Places, names: list[str]) -> dict[str, TensorPlace]:
    """The tensors of a base model by the plain names of the models, as far as it has them.

    A base model may prefix them (`model.`, `bert.`), and have more tensors.
    """
    ends = {name[: -len(wanted)] for wanted in names[:5] for name in found if name.endswith(wanted)}
    prefixes = sorted({"", *(end for end in ends if end.endswith("."))}, key=lambda end: (len(end), end))
    candidates = [
        {name: found[prefix + name] for name in names if prefix + name in found} for prefix in prefixes
    ]
    return max(candidates, key=len)  # of several, the one with the shortest prefix
