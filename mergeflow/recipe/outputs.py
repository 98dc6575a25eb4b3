"""What is written: a folder for each step that is wanted, with its format, shards and tokenizer.

outputs:
  final: {path: ./out/final, dtype: bfloat16, max_shard_size: 5GB, tokenizer: {source: chat}}
  skills: ./out/skills          # the path alone
  other:                        # a path given on the command line
"""

from __future__ import annotations

from mergeflow.errors import Position
from mergeflow.recipe.fields import (
    OUTPUT_FIELDS,
    TOKENIZER_FIELDS,
    VOCABULARY_FIELDS,
    read_fields,
    read_named,
    read_text_value,
)
from mergeflow.recipe.findings import Findings
from mergeflow.recipe.nearest import did_you_mean, nearest, quoted
from mergeflow.recipe.nodes import BrokenNode, Entry, Node, ScalarNode, is_null, join
from mergeflow.recipe.records import DEFAULT_SHARD_BYTES, Output, Source
from mergeflow.recipe.sizes import parse_size
from mergeflow.recipe.sources import Names, read_source
from mergeflow.recipe.steps import read_dtype
from mergeflow.recipe.vocabulary import BUILT_VOCABULARIES


def read_outputs(node: Node, names: Names, findings: Findings) -> tuple[Output, ...]:
    """The outputs of a native recipe, in the order of the file. One of an unknown step is reported and left out."""
    outputs: list[Output] = []
    for entry in read_named(node, "outputs", findings):
        step = _read_step_name(entry, names, findings)
        output = _read_output(entry, step, names, findings)
        if step is not None:
            outputs.append(output)
    _report_shared_paths(outputs, findings)
    return tuple(outputs)


def _read_step_name(entry: Entry, names: Names, findings: Findings) -> str | None:
    if entry.key in names.steps:
        return entry.key
    hint = did_you_mean(entry.key, names.steps, "steps")
    findings.error(f"there is no step {quoted(entry.key)}{hint}", entry.key_position, join("outputs", entry.key))
    return nearest(entry.key, names.steps)


def _read_output(entry: Entry, step: str | None, names: Names, findings: Findings) -> Output:
    """The output an entry describes; `step` is empty when there is none of its name."""
    path, node, name = join("outputs", entry.key), entry.node, step or ""
    if is_null(node) or isinstance(node, BrokenNode):
        return Output(name, position=entry.key_position)
    if isinstance(node, ScalarNode):
        return Output(name, node.text or None, position=entry.key_position)
    fields = read_fields(node, OUTPUT_FIELDS, path, findings)
    folder = dtype = tokenizer = None
    shard_bytes = DEFAULT_SHARD_BYTES
    if "path" in fields:
        folder = read_text_value(fields["path"].node, join(path, "path"), findings)
    if "dtype" in fields:
        dtype = read_dtype(fields["dtype"].node, join(path, "dtype"), findings)
    if "max_shard_size" in fields:
        shard_bytes = _read_shard_size(fields["max_shard_size"].node, join(path, "max_shard_size"), findings)
    if "tokenizer" in fields:
        tokenizer = _read_tokenizer(fields["tokenizer"].node, join(path, "tokenizer"), names, findings)
    return Output(name, folder or None, dtype, shard_bytes, tokenizer, entry.key_position)


def _read_shard_size(node: Node, path: str, findings: Findings) -> int:
    if isinstance(node, ScalarNode) and type(node.value) is int and node.value >= 0:
        return node.value
    text = read_text_value(node, path, findings)
    if text is not None:
        try:
            return parse_size(text)
        except ValueError as error:
            findings.error(str(error), node.position, path)
    return DEFAULT_SHARD_BYTES


def _read_tokenizer(node: Node, path: str, names: Names, findings: Findings) -> Source | None:
    if isinstance(node, ScalarNode):
        findings.error(f"expected a mapping: write {{source: {node.text}}}", node.position, path)
        return None
    fields = read_fields(node, VOCABULARY_FIELDS, path, findings)
    for name, entry in fields.items():
        if name not in TOKENIZER_FIELDS:
            _report_built(f"{quoted(name)}", entry.key_position, join(path, name), findings)
    if "source" not in fields:
        return None
    source = fields["source"].node
    here = join(path, "source")
    if isinstance(source, ScalarNode) and source.text in BUILT_VOCABULARIES and source.text not in names:
        _report_built(f"the tokenizer {quoted(source.text)}", source.position, here, findings)
        return None
    return read_source(source, names, here, findings)


def _report_built(what: str, position: Position, path: str, findings: Findings) -> None:
    """A vocabulary is part of what a step computes: an output only says whose tokenizer is copied."""
    message = f"{what} is part of a merge: write 'tokenizer' in the step, with the same fields"
    findings.error(message, position, path)


def _report_shared_paths(outputs: list[Output], findings: Findings) -> None:
    first: dict[str, Output] = {}
    for output in outputs:
        if output.path is None:
            continue
        other = first.setdefault(output.path.rstrip("/"), output)
        if other is not output:
            message = f"{quoted(output.path)} is also the folder of {quoted(other.step)}: each output needs its own"
            findings.error(message, output.position, join("outputs", output.step))
