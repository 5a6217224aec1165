"""Whether M models can be merged: all differences that prevent it, in one message."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from boom_ray import artifacts, storage
from boom_ray.artifacts import ModelRecord
from boom_ray.artifacts.tensors import TensorPlace, read_places
from boom_ray.errors import BoomError, InputError
from boom_ray.merge.adapter import read_adapter
from boom_ray.merge.compare_configs import config_differences, pooling_differences
from boom_ray.merge.compare_tokenizers import has_tokenizer, tokenizer_differences, vocabulary_conflicts
from boom_ray.merge.inputs import MergeInput
from boom_ray.model import directory, files, modules
from boom_ray.model.adapter import is_adapter
from boom_ray.model.tensor_names import CAUSAL_HEAD, Places, aligned, left_out, plain_names, plain_places

COMPARED = (config_differences, pooling_differences, tokenizer_differences)
LISTED = 5  # missing or extra tensors that are listed for one model


@dataclass(frozen=True)
class CheckedInputs:
    """Models that can be merged; all tensors have the names that the first model gives them.

    Attributes:
        models: The M models.
        base: The model they were trained from, if there is one.
        directory: URI of the directory whose configuration and tokenizer the merged model gets: that of the
            first model that states its pooling.
    """

    models: list[MergeInput]
    base: MergeInput | None
    directory: str


def check_inputs(models: list[str], base: str | None) -> CheckedInputs:
    """Read the headers of all inputs and compare them.

    Names are compared without a prefix that all tensors of an encoder share (`model.`), and without a head
    that is tied to the embeddings. Tensors that take no part in an embedding are left out unless all inputs
    have them. Files are compared by meaning.

    Args:
        models: URIs.
        base: URI of the base model.

    Raises:
        InputError: listing every difference that prevents a merge.
    """
    problems: list[str] = []
    inputs = [found for model in models if (found := _read(model, base, problems))]
    origin = _read_base(base, problems) if base else None
    for other in inputs[1:]:
        problems += _file_differences(inputs[0], other)
    problems += _listed("{}", _base_differences, models, base)
    if base and inputs:
        form = f"{base}: {{}}, as in {inputs[0].uri}"
        problems += _listed(form, vocabulary_conflicts, base, inputs[0].directory)
    if len(inputs) == len(models) and (origin or not base):
        checked = _aligned(inputs, origin, problems)
    if problems:
        raise InputError.of(list(dict.fromkeys(problems)), "these models cannot be merged:")
    return checked


def _listed(form: str, compare: Callable[..., list[str]], *arguments: object) -> list[str]:
    """The differences that a comparison finds, each put into `form`, or the reason why it cannot be made."""
    try:
        return [form.replace("{}", found) for found in compare(*arguments)]
    except BoomError as error:
        return [str(error)]


def _read(model: str, base: str | None, problems: list[str]) -> MergeInput | None:
    try:
        modules.read_modules(model)
        record = artifacts.find(model, ModelRecord)
        problems += _size_differences(model, record)
        if is_adapter(model):
            return _without_tied_head(read_adapter(model, base, record))
        return _without_tied_head(MergeInput(model, read_places(model), model, record))
    except BoomError as error:
        problems.append(str(error))
        return None


def _read_base(base: str, problems: list[str]) -> MergeInput | None:
    try:
        return MergeInput(base, read_places(base), base, artifacts.find(base, ModelRecord))
    except BoomError as error:
        problems.append(str(error))
        return None


def _without_tied_head(model: MergeInput) -> MergeInput:
    """Drop a head that is tied to the embeddings: the merged model stores it once, as the embeddings."""
    tied = files.config_of(model.directory).get("tie_word_embeddings")
    if not tied or CAUSAL_HEAD not in model.places or len(model.places) == 1:
        return model
    return replace(model, places=_without(model.places, {CAUSAL_HEAD}))


def _without(places: Places, names: set[str]) -> dict[str, TensorPlace]:
    return {name: place for name, place in places.items() if name not in names}


def _aligned(inputs: list[MergeInput], base: MergeInput | None, problems: list[str]) -> CheckedInputs:
    """All inputs under the names of the first, in its order; adds what prevents that to `problems`."""
    first = inputs[0]
    plain = plain_places(first.places)
    of_base = aligned(base.places, list(plain)) if base else {}
    out = left_out([plain_places(model.places) for model in inputs] + ([of_base] if base else []))
    for other in inputs[1:]:
        problems += _tensor_differences(first, other, out)
    own_names = dict(zip(plain, first.places, strict=True))
    names = {name: own for name, own in own_names.items() if name not in out}
    if base:
        problems += _differences_to_base(base.uri, of_base, _without(plain, out))
    if problems:
        return CheckedInputs(inputs, base, first.directory)
    if base:
        base = replace(base, places={own: of_base[name] for name, own in names.items()})
    stating = [
        model.directory for model in inputs if files.read_object(model.directory, "1_Pooling/config.json")
    ]
    return CheckedInputs([_renamed(model, names) for model in inputs], base, [*stating, first.directory][0])


def _renamed(model: MergeInput, names: dict[str, str]) -> MergeInput:
    """A model with other tensor names, in the order of `names`.

    Args:
        names: New name of each tensor that is merged, by its plain name.
    """
    own = dict(zip(plain_names(model.places), model.places, strict=True))
    places = {new: model.places[own[plain]] for plain, new in names.items()}
    adapter = {new: model.adapter[own[plain]] for plain, new in names.items() if own[plain] in model.adapter}
    return replace(model, places=places, adapter=adapter)


def _size_differences(model: str, record: ModelRecord | None) -> list[str]:
    if record is None:
        return []
    present = storage.list_files(model)
    return [
        f"{storage.join(model, name)}: {present[name].size if name in present else 'no'} bytes, "
        f"recorded {entry.size}. Restore it, or publish the model again"
        for name, entry in record.files.items()
        if name not in present or present[name].size != entry.size
    ]


def _tensor_differences(first: MergeInput, other: MergeInput, out: set[str]) -> list[str]:
    expected, found = (
        _without(places, out) for places in (plain_places(first.places), plain_places(other.places))
    )
    model = other.uri
    missing, extra = sorted(expected.keys() - found.keys()), sorted(found.keys() - expected.keys())
    problems = [f"{model}: {name}: missing, {first.uri} has it" for name in missing[:LISTED]]
    problems += [f"{model}: {name}: not in {first.uri}" for name in extra[:LISTED]]
    left_out = max(0, len(missing) - LISTED) + max(0, len(extra) - LISTED)
    problems += [f"{model}: {left_out} more tensors missing or not in {first.uri}"] if left_out else []
    for name in sorted(expected.keys() & found.keys()):
        own, reference = found[name], expected[name]
        if own.shape != reference.shape:
            problems.append(
                f"{model}: {name}: shape {list(own.shape)}, in {first.uri} {list(reference.shape)}"
            )
        elif own.dtype != reference.dtype and not (own.is_floating and reference.is_floating):
            problems.append(f"{model}: {name}: {own.dtype}, in {first.uri} {reference.dtype}")
    return problems


def _differences_to_base(base: str, found: Places, wanted: Places) -> list[str]:
    missing = [name for name in wanted if name not in found]
    problems = [
        f"{base}: {name}: shape {list(place.shape)}, in the models {list(wanted[name].shape)}"
        for name, place in found.items()
        if name in wanted and place.shape != wanted[name].shape
    ]
    if missing:
        more = f" and {len(missing) - 1} more of their tensors" if len(missing) > 1 else ""
        problems.append(f"{base}: is not the base model of these models: it lacks {missing[0]}{more}")
    return problems


def _file_differences(first: MergeInput, other: MergeInput) -> list[str]:
    problems = []
    for compare in COMPARED:
        form = f"{other.uri}: {{}}, as in {first.uri}"
        problems += _listed(form, compare, other.directory, first.directory)
    for model in (first, other):
        if model.directory != model.uri and has_tokenizer(model.uri):
            form = f"{model.uri}: {{}}, as in its base model {model.directory}"
            problems += _listed(form, tokenizer_differences, model.uri, model.directory)
    return problems


def _base_differences(models: list[str], base: str | None) -> list[str]:
    """Records name the base model that a model was trained from; all must name the same one."""
    named = {
        model: parent
        for model in models
        if (record := artifacts.find(model, ModelRecord)) and record.config.merge is None
        for parent in record.parents  # a merged model has the merged ones: it was trained from none of them
        if parent.version == "base"
    }
    if not named:
        return []
    origin, expected = next(iter(named.items()))
    digest = directory.identify(base).digest if base else expected.digest
    return [
        f"{model}: was trained from {parent.name} (digest {parent.digest[:8]}), but the base model of "
        f"{'this merge' if base else origin} is {base or expected.name} (digest {digest[:8]})"
        for model, parent in named.items()
        if parent.digest != digest
    ]
