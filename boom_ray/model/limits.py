"""The limits in a model's configuration: positions and dimensions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boom_ray.errors import InputError

DIMENSION_KEYS = ("hidden_size", "dim", "d_model", "n_embd")
POSITION_KEYS = ("max_position_embeddings", "n_positions")
# Their position ids start behind the id of the padding token, so that as many positions stay unused.
POSITIONS_START_BEHIND_PADDING = {
    *("camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta"),
    *("roberta-prelayernorm", "xlm-roberta", "xlm-roberta-xl", "xmod"),
}


@dataclass(frozen=True)
class ModelLimits:
    """The most that a model can take and return.

    Attributes:
        context: Tokens that its configuration declares, special tokens included; None if it does not.
        positions: The same if each position has an embedding, which a longer input would lack; None if
            positions are computed (rotary, ALiBi).
        dimension: Length of its hidden states; None if the configuration does not declare it.
    """

    context: int | None
    positions: int | None
    dimension: int | None

    def check(self, model: str, lengths: Mapping[str, int | None], matryoshka: Sequence[int] = ()) -> None:
        """Check the settings of a recipe.

        Args:
            lengths: Numbers of tokens, by the key that sets them.

        Raises:
            InputError: naming the setting.
        """
        for key, length in lengths.items():
            if length and self.positions and length > self.positions:
                raise InputError(
                    f"{key}: got {length}; {model} has positions for {self.positions} tokens. Set it to at "
                    f"most {self.positions}"
                )
        if matryoshka and self.dimension and max(matryoshka) > self.dimension:
            raise InputError(
                f"train.matryoshka: got {max(matryoshka)}; {model} has {self.dimension} dimensions. "
                f"Use lengths of at most {self.dimension}"
            )


def limits_of(config: dict[str, Any]) -> ModelLimits:
    """The limits in the content of a `config.json`.

    Raises:
        InputError: if one of them is not a number.
    """
    context = _first(config, POSITION_KEYS)
    if context and config.get("model_type") in POSITIONS_START_BEHIND_PADDING:
        context -= _number(config, "pad_token_id", 1) + 1
    computed = config.get("position_embedding_type") == "alibi" or any(
        word in key for key in config for word in ("rope", "rotary", "alibi")
    )
    return ModelLimits(context, None if computed else context, _first(config, DIMENSION_KEYS))


def _first(config: dict[str, Any], keys: Sequence[str]) -> int | None:
    """The value of the first key that a configuration has; a value below 1 stands for no limit, as in XLNet.

    A model type with other keys has its own names of the first one.
    """
    known = [key for key in keys if config.get(key) is not None] or _own_names(config, keys[0])
    values = [_number(config, key, 0) for key in known if config.get(key) is not None]
    return next((value for value in values if value > 0), None)


def _own_names(config: dict[str, Any], name: str) -> list[str]:
    """The names that a model type of transformers has for a setting, such as `emb_dim` for `hidden_size`."""
    from transformers import CONFIG_MAPPING  # slow to import, and needed for few models

    kind = config.get("model_type")
    mapped = CONFIG_MAPPING[kind].attribute_map if isinstance(kind, str) and kind in CONFIG_MAPPING else {}
    return [mapped[name]] if name in mapped else []


def _number(config: dict[str, Any], key: str, default: int) -> int:
    value = config.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise InputError(
            f"config.json: {key}: got {value!r}; expected a whole number. Repair the model's file"
        )
    return value
