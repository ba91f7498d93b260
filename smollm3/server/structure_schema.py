"""response_format: the form that an answer must have, as a request spells it; checked, not yet compiled."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from smollm3.server.fields import Fields, refuse

Name = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
_FIELDS_OF_TYPE: dict[str, tuple[str, ...]] = {
    "text": (),
    "json_object": (),
    "json_schema": ("json_schema",),
    "regex": ("pattern",),
    "grammar": ("syntax", "grammar"),
}


class JsonSchema(Fields):
    """A named schema. It is always followed, whatever `strict` says."""

    name: Name
    schema_: Annotated[dict[str, Any], Field(alias="schema")]
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Fields):
    """OpenAI's three types, and two of this server: a regular expression, a grammar in llguidance's Lark."""

    type: Literal["text", "json_object", "json_schema", "regex", "grammar"]
    json_schema: JsonSchema | None = None
    pattern: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None
    syntax: Literal["lark"] | None = None
    grammar: Annotated[str, Field(min_length=1, max_length=100_000)] | None = None

    @model_validator(mode="after")
    def _fits_its_type(self) -> Self:
        wanted = _FIELDS_OF_TYPE[self.type]
        for name in ("json_schema", "pattern", "syntax", "grammar"):
            given = getattr(self, name) is not None
            if name in wanted and not given:
                refuse("required: send it", name)
            if given and name not in wanted:
                refuse(f"a format of type {self.type} has none: leave it out", name)
        return self
