"""LoRA adapters as models: the tensors of their base model, with low-rank updates added as they are read."""

from boom_ray import storage
from boom_ray.artifacts import ModelRecord
from boom_ray.artifacts.tensors import TensorPlace, read_places
from boom_ray.errors import InputError
from boom_ray.merge.inputs import MergeInput
from boom_ray.model import adapter, files
from boom_ray.model.adapter import AdapterConfig
from boom_ray.model.tensor_names import HEAD, plain_names, plain_places

SAMPLE_BYTES = 4096  # of each tensor, to tell fine-tunes apart


def read_adapter(model: str, base: str | None, record: ModelRecord | None = None) -> MergeInput:
    """An adapter and its base model, as one model.

    Args:
        model: URI of the adapter's directory, in peft's layout.
        base: URI of its base model; None for the one that the adapter names.
        record: Record of the adapter, if it has one.

    Raises:
        InputError: if it is not a plain LoRA adapter, or does not fit its base model.
    """
    config = adapter.read_config(model)
    if base is None:
        base = adapter.base_of(model, config)
    else:
        _check_base(model, config, base)
    found = adapter.read(model, config, base)
    if not storage.is_file(storage.join(model, files.ADAPTED_CONFIG)):
        return MergeInput(model, found.places, base, record, found.updates)
    # It has all files of the encoder that it stands for, whose tensors have plain names, without a head.
    names = dict(zip(found.places, plain_names(found.places), strict=True))
    places = {plain: found.places[name] for name, plain in names.items() if not HEAD.match(plain)}
    updates = {names[name]: low for name, low in found.updates.items()}
    return MergeInput(model, places, model, record, updates)


def _check_base(model: str, config: AdapterConfig, base: str) -> None:
    """Compare the base model of a merge with the one that an adapter names, if that is still there.

    An update means something on top of its own base model only. Samples tell two fine-tunes of one model
    apart; copies in another dtype are not compared.

    Raises:
        InputError: if the two have other weights.
    """
    named = storage.absolute(config.base_model_name_or_path or base)
    if named == base or not storage.is_local(named) or not storage.exists(named):
        return
    ours, theirs = plain_places(read_places(base)), plain_places(read_places(named))
    for name in ours.keys() & theirs.keys():
        one, other = ours[name], theirs[name]
        if (one.shape, one.dtype) == (other.shape, other.dtype) and _sample(one) != _sample(other):
            raise InputError(
                f"{model}: is an adapter of {named}, whose {name} differs from that of {base}. "
                "Merge it with its own base model"
            )


def _sample(place: TensorPlace) -> bytes:
    with storage.open_input(place.uri) as file:
        return bytes(file.read_at(min(SAMPLE_BYTES, place.num_bytes), place.offset))
