"""The parts of the JSON Schema that are the same wherever they stand: values, settings, models, vocabularies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeflow.dtypes import FLOAT_NAMES
from mergeflow.recipe.fields import (
    ADAPTER_FIELDS,
    CONDITION_FIELDS,
    OUTPUT_FIELDS,
    REFERENCE_FIELDS,
    TOKEN_FIELDS,
    TOKEN_SOURCE_FIELDS,
    TOKENIZER_FIELDS,
    VOCABULARY_FIELDS,
)
from mergeflow.recipe.vocabulary import LARGEST_MULTIPLE, TOKEN_KINDS

Schema = dict[str, object]

VARIABLE: Schema = {"type": "string", "pattern": r"\$\{"}
NUMBER_TEXT = r"^\s*[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?\s*$"
INTEGER_TEXT = r"^\s*[+-]?[0-9]+(\.0+)?\s*$"
BOOLEAN_TEXT = "^([tT]([rR][uU][eE])?|[fF]([aA][lL][sS][eE])?|[yY]([eE][sS])?|[nN][oO]?|[oO][nN]|[oO][fF][fF]|0|1)$"

# What may be written for one value of each type: the rules of `settings.convert`.
SCALARS: Mapping[str, Schema] = {
    "float": {"anyOf": [{"type": ["number", "boolean"]}, {"type": "string", "pattern": NUMBER_TEXT}, VARIABLE]},
    "int": {"anyOf": [{"type": ["integer", "boolean"]}, {"type": "string", "pattern": INTEGER_TEXT}, VARIABLE]},
    "bool": {"anyOf": [{"type": "boolean"}, {"enum": [0, 1]}, {"type": "string", "pattern": BOOLEAN_TEXT}, VARIABLE]},
    "string": {"type": "string"},
    "any": {"type": ["number", "boolean", "string"]},
}
TEXT: Schema = {"type": "string", "minLength": 1}


def use(name: str) -> Schema:
    """A reference to a definition of the schema."""
    return {"$ref": f"#/$defs/{name}"}


def any_of(*schemas: Schema) -> Schema:
    """What satisfies one of several schemas."""
    return {"anyOf": list(schemas)}


def fields_of(
    meanings: Mapping[str, str], schemas: Mapping[str, Schema], required: Sequence[str] = (), *, closed: bool = True
) -> Schema:
    """A mapping with the fields of one table, each with its meaning, which editors show. `closed`: and no others."""
    schema: Schema = {"type": "object", "properties": described(meanings, schemas)}
    if closed:
        schema["additionalProperties"] = False
    return {**schema, "required": list(required)} if required else schema


def described(meanings: Mapping[str, str], schemas: Mapping[str, Schema]) -> Schema:
    """The schemas of the fields of one table, each with its meaning."""
    return {name: {"description": meaning, **schemas[name]} for name, meaning in meanings.items()}


def value_definitions() -> dict[str, Schema]:
    """The definitions that do not depend on the methods."""
    return {
        "reference": _reference(),
        "adapter": any_of(TEXT, _adapter()),
        "vocabulary": _vocabulary(closed=True),
        "mergekit_vocabulary": _vocabulary(closed=False),
        "dtype": _dtype(),
        "output": _output(),
        **{f"{kind}_setting": _setting(scalar) for kind, scalar in SCALARS.items()},
    }


def _setting(scalar: Schema) -> Schema:
    """A parameter's value: a scalar, a gradient, a condition, or a list of conditions."""
    value = any_of(scalar, {"type": "array", "items": scalar})
    condition = fields_of(CONDITION_FIELDS, {"value": value, "filter": {"type": "string"}}, ("value",))
    return any_of(scalar, {"type": "array", "items": scalar}, condition, {"type": "array", "items": condition})


def _reference() -> Schema:
    schemas: dict[str, Schema] = {
        "path": TEXT,
        "revision": TEXT,
        "model": any_of(TEXT, {"type": "object"}),
        "lora": use("adapter"),
        "adapters": {"type": "array", "items": use("adapter")},
        "override_architecture": {"type": "string"},
    }
    return any_of(
        TEXT,
        {**fields_of(REFERENCE_FIELDS, schemas), **any_of({"required": ["path"]}, {"required": ["model"]})},
    )


def _adapter() -> Schema:
    schemas: dict[str, Schema] = {"path": TEXT, "revision": TEXT, "weight": SCALARS["float"]}
    return fields_of(ADAPTER_FIELDS, schemas, ("path",))


def _vocabulary(*, closed: bool) -> Schema:
    row: dict[str, Schema] = {
        "source": any_of(_token_source(closed=closed), use("reference")),
        "force": SCALARS["bool"],
    }
    entry = any_of(fields_of(TOKEN_FIELDS, row, closed=closed), {"type": "null"})
    multiple: Schema = {"type": "integer", "minimum": 0, "maximum": LARGEST_MULTIPLE}
    schemas: dict[str, Schema] = {
        "source": use("reference"),
        "tokens": {"type": ["object", "null"], "additionalProperties": entry},
        "pad_to_multiple_of": any_of(multiple, {"type": "null"}, {"type": "string", "pattern": INTEGER_TEXT}, VARIABLE),
    }
    return {**fields_of(VOCABULARY_FIELDS, schemas, closed=closed), "type": ["object", "null"]}


def _token_source(*, closed: bool) -> Schema:
    """Zeros, or the row of a token of a model."""
    schemas: dict[str, Schema] = {
        "kind": {"enum": list(TOKEN_KINDS)},
        "model": use("reference"),
        "token": {"type": ["string", "number", "boolean"]},
        "token_id": any_of({"type": "integer", "minimum": 0}, {"type": "string", "pattern": INTEGER_TEXT}),
    }
    one_token = {"required": ["model"], "oneOf": [{"required": ["token"]}, {"required": ["token_id"]}]}
    return {
        **fields_of(TOKEN_SOURCE_FIELDS, schemas, ("kind",), closed=closed),
        "if": {"properties": {"kind": {"const": "model_token"}}},
        "then": one_token,
    }


def _dtype() -> Schema:
    prefixed = "^torch\\.(" + "|".join(FLOAT_NAMES) + ")$"
    return any_of({"enum": list(FLOAT_NAMES)}, {"type": "string", "pattern": prefixed}, VARIABLE)


def _output() -> Schema:
    schemas: dict[str, Schema] = {
        "path": {"type": "string"},
        "dtype": use("dtype"),
        "max_shard_size": any_of({"type": "integer", "minimum": 0}, {"type": "string"}),
        "tokenizer": fields_of(TOKENIZER_FIELDS, {"source": use("reference")}),
    }
    return any_of({"type": ["string", "null"]}, fields_of(OUTPUT_FIELDS, schemas))
