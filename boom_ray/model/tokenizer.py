"""The tokenizer of a published model: `tokenizer.json` appends the end token itself.

transformers 4 and 5 interpret `add_eos_token` differently, and other servers ignore it. All of them apply the
post-processor in `tokenizer.json`, and reserve the length of its tokens when they truncate.
"""

import json
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

from tokenizers import AddedToken, Tokenizer, models, normalizers, processors

from boom_ray.errors import InputError, first_line
from boom_ray.model.spec import EncoderSpec
from boom_ray.model.tokens import Tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFERRED_EOS = "<|endoftext|>"


def end_with_eos(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make a tokenizer append its end token to every text, unless it already ends texts with a token.

    What the tokenizer puts before a text, such as the BOS of Llama, stays there. Qwen3's chat models declare
    `<|im_end|>` as EOS, but its embedding models end with `<|endoftext|>`, which is therefore preferred if
    the vocabulary has it.

    Raises:
        InputError: if the tokenizer has no end token.
    """
    before, after = added_ids(tokenizer)
    if after:
        return
    eos = PREFERRED_EOS if PREFERRED_EOS in tokenizer.get_vocab() else tokenizer.eos_token
    if eos is None:
        raise InputError(
            f"{tokenizer.name_or_path}: last-token pooling needs an end token, but the tokenizer has none. "
            "Set base_model.pooling to mean or cls, or define eos_token in tokenizer_config.json"
        )
    first = tokenizer.convert_ids_to_tokens(before)
    template = processors.TemplateProcessing(
        single=[*first, "$A", eos],
        pair=[*first, "$A", eos, *(f"{token}:1" for token in first), "$B:1", f"{eos}:1"],
        special_tokens=[*zip(first, before, strict=True), (eos, tokenizer.convert_tokens_to_ids(eos))],
    )
    kept = _processors_without_templates(tokenizer.backend_tokenizer)
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([*kept, template]) if kept else template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = AddedToken(eos, special=True)


def added_ids(tokenizer: "PreTrainedTokenizerBase") -> tuple[list[int], list[int]]:
    """The ids that a tokenizer adds before and after every text.

    Raises:
        InputError: if it changes the ids of the text as well.
    """
    plain = tokenizer("a", truncation=False, add_special_tokens=False)["input_ids"]
    ids = tokenizer("a", truncation=False)["input_ids"]
    for start in range(len(ids) - len(plain) + 1):
        if ids[start : start + len(plain)] == plain:
            return ids[:start], ids[start + len(plain) :]
    raise InputError(
        f"{tokenizer.name_or_path}: the tokenizer does not add its special tokens around a text: 'a' is "
        f"{plain} without them and {ids} with them; allowed: tokens before and after"
    )


def _processors_without_templates(backend: Tokenizer) -> list[Any]:
    """The post-processors that add no tokens, such as the one for the offsets of byte-level tokens.

    A template after another would add the tokens of both; a post-processor can be taken out of a sequence
    in its JSON only.
    """
    state = json.loads(backend.to_str())["post_processor"]
    members = state["processors"] if state and state["type"] == "Sequence" else [state]
    empty = json.loads(Tokenizer(models.BPE()).to_str())
    return [
        Tokenizer.from_str(json.dumps(empty | {"post_processor": member})).post_processor
        for member in members
        if member and member["type"] == "ByteLevel"
    ]


def save(tokenizer: "PreTrainedTokenizerBase", directory: str) -> None:
    """Write the tokenizer's files, without the truncation and padding settings of its last use.

    Raises:
        InputError: if it has no token to pad batches with.
    """
    if tokenizer.pad_token is None:
        raise InputError(
            f"{tokenizer.name_or_path}: the tokenizer has no padding, end, begin, separator or unknown "
            "token, without which servers cannot batch texts. Define pad_token in tokenizer_config.json"
        )
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    expected = json.loads(tokenizer.backend_tokenizer.to_str())
    files = tokenizer.save_pretrained(directory)
    path = next(file for file in files if file.endswith("tokenizer.json"))
    with open(path, encoding="utf-8") as file:  # transformers may rebuild parts on save
        saved = json.load(file)
    assert all(saved[part] == expected[part] for part in ("normalizer", "post_processor"))


def prepare(tokenizer: "PreTrainedTokenizerBase", spec: EncoderSpec) -> None:
    """Make a tokenizer do what a model's files and its pooling require; a second call changes nothing.

    Raises:
        InputError: if last-token pooling needs an end token, and it has none.
    """
    if spec.lowercase:
        _lowercase(tokenizer.backend_tokenizer)
    if spec.pooling == "lasttoken":
        end_with_eos(tokenizer)
    if tokenizer.pad_token is None:
        # Servers pad batches, and attention masks the padding, so that any special token serves.
        tokens = (tokenizer.eos_token, tokenizer.bos_token, tokenizer.sep_token, tokenizer.unk_token)
        tokenizer.pad_token = next((token for token in tokens if token is not None), None)
    tokenizer.padding_side = "right"  # GPT-2 counts the positions of padding on the left


def _lowercase(backend: Tokenizer) -> None:
    """Lowercase before any other normalization, as sentence-transformers does for `do_lower_case`."""
    found: Any = backend.normalizer
    is_sequence = isinstance(found, normalizers.Sequence)
    members = list(found) if is_sequence else [found] if found else []
    if not any(isinstance(member, normalizers.Lowercase) for member in members):
        backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), *members])


def tokenize(
    tokenizer: "PreTrainedTokenizerBase",
    spec: EncoderSpec,
    texts: Sequence[str],
    prompt: str = "",
    max_length: int | None = None,
) -> Tokens:
    """Token ids of each text behind the prompt, special tokens included.

    Args:
        max_length: Tokens after which a text is truncated; by default, and at most, those of the model.
    """
    limit = min(max_length or spec.max_length, spec.max_length)
    skipped = skipped_tokens(tokenizer, spec, prompt, limit)
    return encode(tokenizer, list(map(prompt.__add__, texts)), limit, skipped)


def encode(
    tokenizer: "PreTrainedTokenizerBase", texts: list[str], max_length: int | None, skipped: int = 0
) -> Tokens:
    """Token ids of each text, special tokens included.

    transformers' own call converts every text to a dictionary of lists in Python, which takes longer than to
    tokenize a short one. Here no step of Python is for a single text.

    Args:
        max_length: Tokens after which a text is truncated; None for its whole length.
        skipped: Number of first ids that are not pooled.
    """
    backend: Any = tokenizer.backend_tokenizer
    backend.encode_special_tokens = tokenizer.split_special_tokens
    # Both are state: of the file that the tokenizer was loaded from, then of its last use.
    backend.no_padding()
    if max_length is None:
        backend.no_truncation()
    else:
        backend.enable_truncation(max_length, direction=tokenizer.truncation_side)
    return Tokens.of(list(map(attrgetter("ids"), backend.encode_batch_fast(texts))), skipped)


def skipped_tokens(
    tokenizer: "PreTrainedTokenizerBase", spec: EncoderSpec, prompt: str, max_length: int
) -> int:
    """Number of the first tokens of texts behind a prompt that are not pooled.

    It is counted as sentence-transformers does (`Transformer._get_prompt_length`): all tokens of the prompt
    alone, those that the tokenizer puts before it included, but no end token.
    """
    if spec.include_prompt or not prompt or spec.pooling == "lasttoken":
        return 0
    ids = tokenizer(prompt, truncation=True, max_length=max_length)["input_ids"]
    return len(ids) - (bool(ids) and ids[-1] in tokenizer.all_special_ids)


def load(directory: str, spec: EncoderSpec) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a local model directory, prepared for its encoder.

    Raises:
        InputError: if its files are damaged or missing, or it cannot be used; see `prepare`.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(directory)
    except Exception as error:  # tokenizers raises nothing more precise for a damaged tokenizer.json
        raise InputError(
            f"{directory}: its tokenizer cannot be loaded: {first_line(error)}. Check tokenizer.json and "
            "tokenizer_config.json, or download the model again"
        ) from error
    if not tokenizer.is_fast:
        raise InputError(
            f"{directory}: {type(tokenizer).__name__} has no fast form, which is needed here and by servers. "
            "Use a model with a tokenizer.json"
        )
    prepare(tokenizer, spec)
    return tokenizer
