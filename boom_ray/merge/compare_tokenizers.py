"""Whether two models have the same tokenizer: by the ids that texts get, not by the bytes of its files.

Rows of an embedding matrix belong to tokens. Models whose tokenizers number tokens in another order have
matrices of one shape whose rows must not be averaged.
"""

import json
import os
import tempfile
from dataclasses import dataclass
from typing import Any

from boom_ray import storage
from boom_ray.errors import InputError, first_line

SUFFIXES = (".json", ".txt", ".model", ".codes", ".vocab", ".tiktoken")
VOCABULARIES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "added_tokens.json"),
    *("tokenizer.model", "spiece.model", "spm.model", "sentencepiece.bpe.model"),
)
SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
#: Parts of `tokenizer.json` that change no id of a text: how it is cut and padded is decided by the caller.
WITHOUT_EFFECT = ("version", "truncation", "padding", "decoder")
LISTED = 3  # tokens that are listed
ADDED_ON_LOAD = ("tokenizer: added tokens: ", "tokenizer: special tokens: ")
PROBE = "a b"  # shows the special tokens around a text, once everything else is known to be the same


@dataclass(frozen=True)
class Meaning:
    """Everything of a tokenizer that the ids of a text depend on.

    Attributes:
        vocabulary: Id of every token, added ones included.
        parts: By name: the model without its vocabulary, merges, normalizer, pre-tokenizer, added tokens.
        probe: Ids and types of `PROBE` with special tokens.
    """

    vocabulary: dict[str, int]
    parts: dict[str, Any]
    probe: Any


def tokenizer_differences(model: str, first: str) -> list[str]:
    """Differences between two tokenizers that give a text other ids.

    Files with equal bytes are equal. Else `tokenizer.json` is compared by meaning, because some servers read
    no other file. What other files can add, tokens and the template, is compared as transformers loads it.

    Args:
        model: URI of a model directory.
        first: URI of the model directory it is compared with.

    Returns:
        One phrase for each difference.

    Raises:
        InputError: if a tokenizer cannot be read.
    """
    own, other = _files(model), _files(first)
    if own == other:
        return []
    if not own or not other:
        lacking, having = (model, first) if not own else (first, model)
        return [f"tokenizer: {lacking} has none. Copy the files of {having} if it is the same"]
    if "tokenizer.json" in own and "tokenizer.json" in other:
        mine, theirs = (
            _of_tokenizer_json(files["tokenizer.json"], uri) for files, uri in ((own, model), (other, first))
        )
        same_settings = all(own.get(name) == other.get(name) for name in SETTINGS)
        found = _differences(mine, theirs)
        fixed = [one for one in found if not one.startswith(ADDED_ON_LOAD)]
        if fixed or (same_settings and not found):
            return fixed
    return _differences_as_loaded(model, own, first, other)


def has_tokenizer(uri: str) -> bool:
    """Whether a directory has the files of a tokenizer."""
    return bool(_files(uri))


def vocabulary_conflicts(base: str, model: str) -> list[str]:
    """Tokens that the base model of a model numbers in another way; either may have more tokens.

    Raises:
        InputError: if a tokenizer cannot be read.
    """
    files = [_files(uri) for uri in (base, model)]
    if not all(files) or files[0] == files[1]:
        return []
    own, theirs = (_vocabulary(uri, content) for uri, content in zip((base, model), files, strict=True))
    if own is None or theirs is None:
        return []
    moved = [token for token in own.keys() & theirs.keys() if own[token] != theirs[token]]
    shared = len(own.keys() & theirs.keys())
    if moved or 2 * shared < min(len(own), len(theirs)):
        return _vocabulary_differences(own, theirs)
    return []


def _files(uri: str) -> dict[str, bytes]:
    """The files of a tokenizer, by name; none if the directory has no vocabulary."""
    is_directory = storage.exists(uri) and not storage.name_of(uri).endswith(".safetensors")
    names = storage.list_names(uri) if is_directory else set()
    found = {name for name in names if name in VOCABULARIES + SETTINGS}
    if not found & {*VOCABULARIES} - {"added_tokens.json"}:
        return {}
    return {name: storage.read_bytes(storage.join(uri, name)) for name in sorted(found)}


def _of_tokenizer_json(content: bytes, uri: str) -> Meaning:
    from tokenizers import Tokenizer

    try:
        return _meaning(Tokenizer.from_str(content.decode()))
    except Exception as error:  # the library has no class of its own for a file it cannot read
        raise InputError(f"{uri}: tokenizer.json cannot be read: {first_line(error)}") from error


def _meaning(backend: Any) -> Meaning:
    """The meaning of a `tokenizers.Tokenizer`; writing it gives every part one form and its defaults."""
    backend.no_truncation()
    backend.no_padding()
    state = json.loads(backend.to_str())
    model = state["model"]
    scores = dict(model.pop("vocab")) if model["type"] == "Unigram" else {}
    model.pop("vocab", None)
    merges = model.pop("merges", [])
    encoding = backend.encode(PROBE)
    return Meaning(
        vocabulary=backend.get_vocab(with_added_tokens=True),
        parts={
            **{f"model.{key}": value for key, value in model.items() if key != "dropout"},
            "merges": merges,
            "scores": scores,
            "normalizer": _flat(state["normalizer"], "normalizers"),
            "pre_tokenizer": _flat(state["pre_tokenizer"], "pretokenizers"),
            "added tokens": {
                token["content"]: {
                    key: token[key] for key in ("single_word", "lstrip", "rstrip", "normalized")
                }
                for token in state["added_tokens"]
            },
        },
        probe=[encoding.ids, encoding.type_ids],
    )


def _flat(part: Any, members: str) -> list[Any]:
    """A normalizer or pre-tokenizer as a list of steps, without what concerns only the offsets of tokens."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        return [step for member in part[members] for step in _flat(member, members)]
    return [{key: value for key, value in part.items() if key != "trim_offsets"}]


def _differences(own: Meaning, other: Meaning) -> list[str]:
    found = _vocabulary_differences(own.vocabulary, other.vocabulary)
    if found:
        return found
    for name in own.parts.keys() | other.parts.keys():
        found += _part_differences(name, own.parts.get(name), other.parts.get(name))
    if not found and own.probe != other.probe:
        found.append(f"tokenizer: special tokens: {PROBE!r} is {own.probe[0]}, not {other.probe[0]}")
    return sorted(found)


def _vocabulary_differences(own: dict[str, int], other: dict[str, int]) -> list[str]:
    differing = [token for token in own.keys() | other.keys() if own.get(token) != other.get(token)]
    differing.sort(key=lambda token: (min(own.get(token, 1 << 40), other.get(token, 1 << 40)), token))
    found = [
        f"tokenizer: token {token!r} is {own.get(token, 'missing')}, not {other.get(token, 'missing')}"
        for token in differing[:LISTED]
    ]
    return found + ([f"tokenizer: {len(differing) - LISTED} more tokens"] if len(differing) > LISTED else [])


def _part_differences(name: str, own: Any, other: Any) -> list[str]:
    if own == other:
        return []
    if isinstance(own, dict) and isinstance(other, dict):
        keys = [key for key in own.keys() | other.keys() if own.get(key) != other.get(key)]
        shown = min(keys)
        return [f"tokenizer: {name}: {shown!r} is {_short(own.get(shown))}, not {_short(other.get(shown))}"]
    if name == "merges":
        pairs = zip([*own, None], [*other, None], strict=False)
        rank, (mine, theirs) = next((rank, pair) for rank, pair in enumerate(pairs) if pair[0] != pair[1])
        return [f"tokenizer: merges: number {rank} is {mine}, not {theirs}"]
    return [f"tokenizer: {name}: {_short(own)}, not {_short(other)}"]


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= 120 else f"{text[:117]}..."


def _differences_as_loaded(
    model: str, own: dict[str, bytes], first: str, other: dict[str, bytes]
) -> list[str]:
    """Compare tokenizers as transformers loads them; byte by byte those that it has only in Python."""
    loaded = [_load(uri) for uri in (model, first)]
    if all(getattr(tokenizer, "is_fast", False) for tokenizer in loaded):
        return _differences(*(_meaning(tokenizer.backend_tokenizer) for tokenizer in loaded))
    return [
        f"tokenizer: {name} differs, or only one has it"
        for name in VOCABULARIES
        if _lines(name, own.get(name)) != _lines(name, other.get(name))
    ]


def _lines(name: str, content: bytes | None) -> Any:
    return content.split() if content is not None and name.endswith((".txt", ".codes")) else content


def _load(uri: str) -> Any:
    """A tokenizer as transformers loads it; None if it cannot, or only with code of the directory."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as local:
        for name in storage.list_names(uri):
            if name.endswith(SUFFIXES) and not name.endswith(".index.json"):
                with open(os.path.join(local, name), "wb") as file:
                    file.write(storage.read_bytes(storage.join(uri, name)))
        try:
            return AutoTokenizer.from_pretrained(local)
        except Exception:  # whatever it is, the files can still be compared
            return None


def _vocabulary(uri: str, files: dict[str, bytes]) -> dict[str, int] | None:
    if "tokenizer.json" in files:
        return _of_tokenizer_json(files["tokenizer.json"], uri).vocabulary
    loaded = _load(uri)
    return None if loaded is None else dict(loaded.get_vocab())
