"""The files of sentence-transformers in a model directory, and which of their settings are computed here.

A setting that changes an embedding is honoured as sentence-transformers does, or refused by its name.
"""

from typing import Any

from pydantic import Field

from boom_ray import storage
from boom_ray.errors import InputError
from boom_ray.model import files
from boom_ray.model.files import ModelFile
from boom_ray.model.spec import EncoderSpec
from boom_ray.recipe import Pooling

MODULES = ["Transformer", "Pooling", "Normalize"]
POOLING_FLAGS = {
    "cls": "pooling_mode_cls_token",
    "mean": "pooling_mode_mean_tokens",
    "max": "pooling_mode_max_tokens",
    "mean_sqrt_len_tokens": "pooling_mode_mean_sqrt_len_tokens",
    "weightedmean": "pooling_mode_weightedmean_tokens",
    "lasttoken": "pooling_mode_lasttoken",
}
# The sum of the states over the root of their number points where their mean does, and vectors have norm 1.
POOLINGS: dict[str, Pooling] = {
    "cls": "cls",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean",
    "lasttoken": "lasttoken",
}
#: The names of the first module's settings, in the order in which sentence-transformers looks for them.
TRANSFORMER_FILES = [
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
]
#: Settings of the first module that give other embeddings than a plain tokenizer and transformer would.
UNSUPPORTED = ("processing_kwargs", "query_length", "document_length", "query_expansion")


class Module(ModelFile):
    """One entry of `modules.json`."""

    type: str
    path: str = ""

    @property
    def name(self) -> str:
        """The class without its package."""
        return self.type.rpartition(".")[2]


class _Modules(ModelFile):
    modules: list[Module]


class TransformerSettings(ModelFile):
    """Settings of the first module."""

    max_seq_length: int | None = Field(None, ge=1)
    do_lower_case: bool = False


class PoolingSettings(ModelFile):
    """Settings of the pooling.

    Attributes:
        pooling: Reduction of token states to one vector; None if no file states it.
        include_prompt: Whether the tokens of the prompt are pooled as well.
    """

    pooling: Pooling | None = None
    include_prompt: bool = True


class PromptSettings(ModelFile):
    """Prompts by name, and the name of the prompt of texts for which none is chosen."""

    prompts: dict[str, str] = Field(default_factory=dict)
    default_prompt_name: str | None = None


def read_modules(directory: str) -> list[Module]:
    """The modules of a model directory; `[]` if it has no `modules.json`.

    Raises:
        InputError: naming a module that is not computed here, or is the directory's own code.
    """
    content = files.read_json(directory, "modules.json")
    if content is None:
        return []
    where = storage.join(directory, "modules.json")
    modules = files.check({"modules": content}, where, _Modules).modules
    for module in modules:
        if not module.type.startswith("sentence_transformers.") or module.name not in MODULES:
            raise InputError(
                f"{directory}: modules.json contains {module.type}; allowed: {', '.join(MODULES)} of "
                "sentence_transformers. Code in a model directory is never run"
            )
    names = [module.name for module in modules]
    if names != MODULES[: len(names)]:
        raise InputError(f"{where}: got {', '.join(names)}; allowed: {', '.join(MODULES)}, in this order")
    if modules and modules[0].path not in ("", "."):
        raise InputError(
            f"{where}: the transformer is in {modules[0].path}/; expected: in the model directory itself. "
            "Load it with a newer sentence-transformers, and save it again"
        )
    return modules


def read_transformer(directory: str) -> TransformerSettings:
    """The settings of the first module.

    Raises:
        InputError: naming a setting that is not computed here.
    """
    name = next((name for name in TRANSFORMER_FILES if files.read_object(directory, name)), None)
    if name is None:
        return TransformerSettings()
    content, where = files.read_object(directory, name), storage.join(directory, name)
    unsupported = [key for key in UNSUPPORTED if content.get(key)]
    if content.get("transformer_task") not in (None, "feature-extraction"):
        unsupported.append("transformer_task")
    modalities = content.get("modality_config")
    if isinstance(modalities, dict) and ("message" in modalities or "text" not in modalities):
        unsupported.append("modality_config")  # texts would become messages of a chat template
    for key in unsupported:
        raise InputError(f"{where}: {key}: got {content[key]}; it is not supported. Use a model without it")
    return files.read(directory, name, TransformerSettings)


def read_pooling(directory: str, modules: list[Module]) -> PoolingSettings:
    """The settings of the pooling, in the form of either age.

    Raises:
        InputError: if the pooling is not computed here.
    """
    path = next((module.path for module in modules if module.name == "Pooling"), "1_Pooling")
    name = storage.join(path, "config.json")
    content = files.read_object(directory, name)
    if not content:
        return PoolingSettings()
    modes = pooling_modes(content)
    if len(modes) != 1 or not isinstance(modes[0], str) or modes[0] not in POOLINGS:
        raise InputError(
            f"{storage.join(directory, name)}: pooling {', '.join(map(str, modes))}; "
            f"allowed: one of {', '.join(POOLINGS)}"
        )
    given = {key: content[key] for key in ("include_prompt",) if content.get(key) is not None}
    return files.check(
        given | {"pooling": POOLINGS[modes[0]]}, storage.join(directory, name), PoolingSettings
    )


def pooling_modes(content: dict[str, Any]) -> list[Any]:
    """The modes in the configuration of a pooling, which states them by name or, if older, by booleans."""
    stated = content.get("pooling_mode")
    if stated is None:
        return [mode for mode, flag in POOLING_FLAGS.items() if content.get(flag)] or ["mean"]
    return stated if isinstance(stated, list) else [stated]


def read_prompts(directory: str) -> PromptSettings:
    """The prompts of a model.

    Raises:
        InputError: if the default prompt does not exist, or embeddings are shortened.
    """
    name = "config_sentence_transformers.json"
    content, where = files.read_object(directory, name), storage.join(directory, name)
    if content.get("truncate_dim") is not None:
        raise InputError(
            f"{where}: truncate_dim: got {content['truncate_dim']}; embeddings have all dimensions here. "
            "Remove it, and shorten them with the option dimensions"
        )
    prompts = content.get("prompts")
    if isinstance(prompts, dict):  # sentence-transformers writes null for a prompt that is empty
        content["prompts"] = {key: "" if text is None else text for key, text in prompts.items()}
    given = {key: value for key, value in content.items() if value is not None}
    settings = files.check(given, where, PromptSettings)
    default = settings.default_prompt_name
    if default is not None and default not in {"query", "document", *settings.prompts}:
        raise InputError(
            f"{where}: default_prompt_name: got {default!r}; allowed: {', '.join(settings.prompts) or 'none'}"
        )
    return settings


def write(directory: str, spec: EncoderSpec, dimension: int) -> None:
    """Write the files from which sentence-transformers, TEI and vLLM compute what `spec` states.

    The pooling has its older form, with all booleans: TEI rejects the newer one, and older vLLM silently
    falls back to another pooling.

    Args:
        directory: A local model directory.
        dimension: Length of the hidden states.
    """
    paths = ["", "1_Pooling", "2_Normalize"]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{module}"}
        for index, (path, module) in enumerate(zip(paths, MODULES, strict=True))
    ]
    flags = {flag: name == spec.pooling for name, flag in POOLING_FLAGS.items()}
    pooling = {"word_embedding_dimension": dimension, **flags, "include_prompt": spec.include_prompt}
    prompting = {"prompts": spec.prompts, "default_prompt_name": spec.default_prompt_name}
    transformer = {"max_seq_length": spec.max_length, "do_lower_case": spec.lowercase}
    files.write_json(directory, "modules.json", modules)
    files.write_json(directory, "1_Pooling/config.json", pooling)
    files.write_json(directory, "2_Normalize/config.json", {})
    files.write_json(directory, "sentence_bert_config.json", transformer)
    files.write_json(
        directory, "config_sentence_transformers.json", {**prompting, "similarity_fn_name": "cosine"}
    )
