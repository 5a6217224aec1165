"""Types in a recipe: its sections, and names, URIs, texts and templates, each with its rule."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo

from boom_ray.storage import absolute

SaveDtype = Literal["float32", "bfloat16", "float16"]


class Section(BaseModel):
    """A part of the recipe; an unknown key is an error, and so is a number that is not finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _identifier(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ValueError(
            f"got {name!r}; allowed: letters, digits, '.', '_' and '-', starting with a letter or digit"
        )
    return name


def _unicode(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            "half of a surrogate pair, which is not valid Unicode. Write the character"
        ) from error
    return text


def _query_template(template: str) -> str:
    prefix = template.removesuffix("{query}")
    if prefix == template or re.search("[{}]", prefix.replace("{instruction}", "")):
        raise ValueError(
            f"got {template!r}; it must end in {{query}}, as a prompt is a prefix; allowed before it: "
            "{instruction}, and no other braces"
        )
    return template


def _document_template(template: str) -> str:
    if not template.endswith("{document}") or re.search("[{}]", template.removesuffix("{document}")):
        raise ValueError(
            f"got {template!r}; it must end in {{document}}, as a prompt is a prefix, and have no other brace"
        )
    return template


def _density(value: float | list[float]) -> float | list[float]:
    if not all(0 < density <= 1 for density in (value if isinstance(value, list) else [value])):
        raise ValueError(f"got {value}; allowed: above 0, at most 1")
    return value


Density = Annotated[float | list[float], AfterValidator(_density)]


def _absolute(uri: str, info: ValidationInfo) -> str:
    """Resolve a URI against `directory` of the validation context, by default the working directory."""
    return absolute(uri, (info.context or {}).get("directory"))


Name = Annotated[str, AfterValidator(_identifier)]
Uri = Annotated[str, AfterValidator(_absolute)]
Text = Annotated[str, AfterValidator(_unicode)]
QueryTemplate = Annotated[Text, AfterValidator(_query_template)]
DocumentTemplate = Annotated[Text, AfterValidator(_document_template)]
