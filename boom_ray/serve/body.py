"""The base class of request bodies: null means the default, and an unknown key is an error."""

from typing import Any

from pydantic import BaseModel, GetJsonSchemaHandler, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, PydanticCustomError


class Body(BaseModel):
    """A request body.

    Clients send null for options that they leave open. An unknown key with a value is refused as OpenAI's API
    refuses it: `dimension` for `dimensions` would return other vectors than the client expects.
    """

    @model_validator(mode="before")
    @classmethod
    def _sent_values(cls, body: Any) -> Any:
        if not isinstance(body, dict):
            return body
        sent = {key: value for key, value in body.items() if value is not None}
        for key in sent:
            if key not in cls.model_fields:
                values = {"key": repr(key), "allowed": ", ".join(cls.model_fields)}
                raise PydanticCustomError("unknown_key", "unknown key {key}; allowed: {allowed}", values)
        return sent

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """The schema with null as a value of all optional keys, and of unknown ones."""
        reference = handler(core)
        schema = handler.resolve_ref_schema(reference)
        schema["additionalProperties"] = {"type": "null"}
        for key, value in schema["properties"].items():
            if key not in schema.get("required", []) and {"type": "null"} not in value.get("anyOf", []):
                schema["properties"][key] = {"anyOf": [value, {"type": "null"}]}
        return reference
