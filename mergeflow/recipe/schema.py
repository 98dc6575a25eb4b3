"""The JSON Schema (draft 2020-12) of recipes, with which editors complete and check them while they are written.

It is made from the tables of `fields.py` and from the methods it is given, so that it knows what the reader knows.
What a schema cannot say (names that must exist, cycles, shapes) is left to `mergeflow validate`. A native recipe is
checked for unknown fields and parameters; a mergekit file is not, since mergekit allows them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mergeflow.recipe.fields import (
    DOCUMENT_FIELDS,
    INPUT_FIELDS,
    MODULE_FIELDS,
    NATIVE_FIELDS,
    OPERATIONS,
    SLICE_FIELDS,
    SOURCE_FIELDS,
    STEP_FIELDS,
)
from mergeflow.recipe.native import LARGEST_SEED, VERSION
from mergeflow.recipe.schema_values import (
    INTEGER_TEXT,
    SCALARS,
    VARIABLE,
    Schema,
    any_of,
    described,
    fields_of,
    use,
    value_definitions,
)
from mergeflow.recipe.settings import Kind
from mergeflow.recipe.steps import BESIDE_OPERATION, CACHE_POLICIES
from mergeflow.recipe.variables import NAME

Methods = Mapping[str, Sequence[tuple[str, Kind]]]

PARAMETERS: Schema = {"type": "object", "additionalProperties": use("any_setting")}
DIALECT = "https://json-schema.org/draft/2020-12/schema"
# The fields of which one says what a merge is made of, and when one of them counts as written.
WRITTEN: Mapping[str, Schema] = {"models": {"minItems": 1}, "slices": {"minItems": 1}, "modules": {"minProperties": 1}}


def json_schema(methods: Methods) -> Schema:
    """The schema of native recipes and mergekit files, by whether the field `mergeflow` is there.

    Args:
        methods: the merge methods by name, each with its parameters and their types.
    """
    return {
        "$schema": DIALECT,
        "title": "mergeflow recipe",
        "description": "A native recipe (it has 'mergeflow: 1'), or a mergekit configuration.",
        "type": "object",
        "if": {"required": ["mergeflow"]},
        "then": use("native"),
        "else": use("mergekit"),
        "$defs": {
            "native": _native(),
            "mergekit": _mergekit(methods),
            "step": _step(methods),
            **value_definitions(),
        },
    }


def _named(values: Schema) -> Schema:
    """A mapping from names to values of one kind."""
    return {"type": "object", "propertyNames": {"pattern": f"^{NAME.pattern}$"}, "additionalProperties": values}


def _native() -> Schema:
    value = SCALARS["any"]
    variable = any_of(value, {"type": "array", "items": value})
    schemas: dict[str, Schema] = {
        "mergeflow": {"const": VERSION},
        "seed": any_of({"type": "integer", "minimum": 0, "maximum": LARGEST_SEED}, VARIABLE),
        "models": _named(use("reference")),
        "vars": _named(variable),
        "sweep": _named({"type": "array", "minItems": 1, "uniqueItems": True, "items": variable}),
        "steps": {**_named(use("step")), "minProperties": 1},
        "outputs": _named(use("output")),
    }
    return fields_of(NATIVE_FIELDS, schemas, ("mergeflow", "steps"))


def _merge_schemas(methods: Methods, *, closed: bool) -> dict[str, Schema]:
    """The schemas of a merge's fields, with any parameters: those of its method are checked beside them."""
    models, slices = _models(closed=closed), _slices(closed=closed)
    module_schemas = {"models": models, "slices": slices, "parameters": PARAMETERS}
    module = fields_of(MODULE_FIELDS, module_schemas, closed=closed) | _made_of("models", "slices")
    return {
        "merge_method": any_of({"enum": list(methods)}, VARIABLE),
        "models": models,
        "slices": slices,
        "modules": {"type": ["object", "null"], "additionalProperties": module},
        "base_model": use("reference"),
        "parameters": PARAMETERS,
        "dtype": use("dtype"),
        "out_dtype": use("dtype"),
        "tokenizer": use("vocabulary" if closed else "mergekit_vocabulary"),
        "tokenizer_source": any_of(use("reference"), {"enum": [None, ""]}),
        "chat_template": {"type": ["string", "null"]},
    }


def _models(*, closed: bool) -> Schema:
    schemas = {"model": use("reference"), "parameters": PARAMETERS}
    return {"type": ["array", "null"], "items": fields_of(INPUT_FIELDS, schemas, ("model",), closed=closed)}


def _slices(*, closed: bool) -> Schema:
    layer = any_of({"type": "integer", "minimum": 0}, {"type": "string", "pattern": INTEGER_TEXT}, VARIABLE)
    source_schemas: dict[str, Schema] = {
        "model": use("reference"),
        "layer_range": {"type": "array", "minItems": 2, "maxItems": 2, "items": layer},
        "parameters": PARAMETERS,
    }
    source = fields_of(SOURCE_FIELDS, source_schemas, ("model", "layer_range"), closed=closed)
    slice_schemas: dict[str, Schema] = {
        "sources": {"type": "array", "minItems": 1, "items": source},
        "base_model": use("reference"),
        "parameters": PARAMETERS,
        "residual_weight": SCALARS["float"],
    }
    return {"type": ["array", "null"], "items": fields_of(SLICE_FIELDS, slice_schemas, ("sources",), closed=closed)}


def _made_of(*ways: str) -> Schema:
    """Exactly one of these fields is written; an empty one counts as not written."""
    return {"oneOf": [{"required": [name], "properties": {name: {**WRITTEN[name], "not": NULL}}} for name in ways]}


NULL: Schema = {"type": "null"}


def _step(methods: Methods) -> Schema:
    schemas: dict[str, Schema] = {
        **_merge_schemas(methods, closed=True),
        **{name: _operation(name, methods) for name in OPERATIONS},
        "cache": any_of({"enum": list(CACHE_POLICIES)}, VARIABLE),
    }
    written: list[Schema] = [{"required": [name]} for name in OPERATIONS]
    beside: Schema = {"propertyNames": {"enum": [*OPERATIONS, *BESIDE_OPERATION]}, "oneOf": written}
    return {
        **fields_of(STEP_FIELDS, schemas),
        "if": {"anyOf": written},
        "then": beside,
        "else": {"required": ["merge_method"], **_made_of(*WRITTEN)},
        **_parameters_by_method(methods, closed=True),
    }


def _operation(name: str, methods: Methods) -> Schema:
    """The body of a step that is one method under its own name: its sources and its parameters."""
    form = OPERATIONS[name]
    meanings = dict(form.sources)
    schemas = dict.fromkeys(meanings, use("reference"))
    required: Schema = {"required": list(form.sources)}
    if form.adapter:
        meanings["adapter"], schemas["adapter"] = form.adapter, use("adapter")
        first = next(iter(form.sources))
        alone: Schema = {"required": ["adapter"], "properties": {first: False}}
        required = {"if": {"required": ["adapter"]}, "then": alone, "else": required}
    parameters = {parameter: use(f"{kind}_setting") for parameter, kind in methods.get(name, ())}
    body = fields_of(meanings, schemas)
    return {**body, "properties": {**parameters, **described(meanings, schemas)}, **required}


def _mergekit(methods: Methods) -> Schema:
    """mergekit ignores fields it does not know, at every level: so does this schema."""
    schemas: dict[str, Schema] = {
        **_merge_schemas(methods, closed=False),
        "name": {"type": ["string", "number", "null"]},
    }
    return {
        **fields_of(DOCUMENT_FIELDS, schemas, ("merge_method",), closed=False),
        **_made_of(*WRITTEN),
        **_parameters_by_method(methods, closed=False),
    }


def _parameters_by_method(methods: Methods, *, closed: bool) -> Schema:
    rules = [_parameters_of(name, parameters, closed=closed) for name, parameters in methods.items()]
    return {"allOf": rules} if rules else {}


def _parameters_of(name: str, parameters: Sequence[tuple[str, Kind]], *, closed: bool) -> Schema:
    """When a merge is of the method `name`: the parameters it has. `closed`: and no others."""
    known: Schema = {"properties": {parameter: use(f"{kind}_setting") for parameter, kind in parameters}}
    if closed:
        known["additionalProperties"] = False
    entry: Schema = {"items": {"properties": {"parameters": known}}}
    part: Schema = {"items": {"properties": {"parameters": known, "sources": entry}}}
    module: dict[str, Schema] = {"parameters": known, "models": entry, "slices": part}
    return {
        "if": {"properties": {"merge_method": {"const": name}}, "required": ["merge_method"]},
        "then": {"properties": {**module, "modules": {"additionalProperties": {"properties": module}}}},
    }
