"""The tokenizer of a published model: `tokenizer.json` appends the end token itself.

transformers 4 and 5 interpret `add_eos_token` differently, and other servers ignore it. All of them apply the
post-processor in `tokenizer.json`, and reserve the length of its tokens when they truncate.
"""

import json
from typing import TYPE_CHECKING

from tokenizers import AddedToken, processors

from boom_ray.errors import InputError
from boom_ray.model.spec import EncoderSpec

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PREFERRED_EOS = "<|endoftext|>"


def end_with_eos(tokenizer: "PreTrainedTokenizerBase") -> None:
    """Make a tokenizer append its end token to every text, unless it already does.

    Qwen3's chat models declare `<|im_end|>` as EOS, but its embedding models end with `<|endoftext|>`, which
    is therefore preferred if the vocabulary has it.

    Raises:
        InputError: if the tokenizer has no end token.
    """
    ids = tokenizer("a", truncation=False)["input_ids"]
    eos = PREFERRED_EOS if PREFERRED_EOS in tokenizer.get_vocab() else tokenizer.eos_token
    if eos is None:
        raise InputError(
            f"{tokenizer.name_or_path}: last-token pooling needs an end token, but the tokenizer has none. "
            "Set base_model.pooling to mean or cls, or define eos_token in tokenizer_config.json"
        )
    eos_id = tokenizer.convert_tokens_to_ids(eos)
    if ids and ids[-1] == eos_id:
        return
    backend = tokenizer.backend_tokenizer
    template = processors.TemplateProcessing(
        single=f"$A {eos}", pair=f"$A {eos} $B:1 {eos}:1", special_tokens=[(eos, eos_id)]
    )
    existing = backend.post_processor
    backend.post_processor = processors.Sequence([existing, template]) if existing else template
    if tokenizer.pad_token is None:
        tokenizer.pad_token = AddedToken(eos, special=True)


def save(tokenizer: "PreTrainedTokenizerBase", directory: str) -> None:
    """Write the tokenizer's files, without the truncation and padding settings of its last use."""
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    expected = json.loads(tokenizer.backend_tokenizer.to_str())["post_processor"]
    files = tokenizer.save_pretrained(directory)
    path = next(file for file in files if file.endswith("tokenizer.json"))
    with open(path, encoding="utf-8") as file:  # transformers may rebuild the post-processor on save
        assert json.load(file)["post_processor"] == expected


def load(directory: str, spec: EncoderSpec) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a local model directory; it appends the end token if the pooling needs it."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    if spec.pooling == "lasttoken":
        end_with_eos(tokenizer)
    return tokenizer
