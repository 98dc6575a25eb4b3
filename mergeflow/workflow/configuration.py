"""The config.json of an output: the donor's, mended where the output is not like the donor any more.

other layers                 counts and lists of layers (output.config_layers)
another number of rows       the vocabulary's size: whatever gave the embedding other rows than the donor's has
a head of its own            tied no more, where the donor's configuration says that head and embedding are one
tokens with other ids        eos_token_id and the like (output.tokenizer)
another number format        dtype (output.config)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cache

from mergeflow.errors import Problem
from mergeflow.graph.values import Compiled, CompiledOutput, OutputTensor
from mergeflow.models.config_vocabulary import with_head_of_its_own, with_vocab_size
from mergeflow.models.layout import Layout, infer_layout
from mergeflow.models.vocabulary import is_embedding, is_head, rows_of, vocabulary_tensors
from mergeflow.output.config import merged_config
from mergeflow.output.config_layers import SourceLayer, Stacked, with_layers
from mergeflow.output.tokenizer import with_token_ids
from mergeflow.recipe.records import ModelReference


def output_config(compiled: Compiled, made: CompiledOutput) -> Mapping[str, object]:
    """What config.json of an output says; empty when the donor has none."""
    donor = made.donor
    if not donor.config:
        return {}
    config, _ = _with_layers(compiled, made)
    rows = _rows(made)
    if rows is not None:
        config = with_vocab_size(config, rows)
    if made.vocabulary is not None:
        config = with_token_ids(config, donor.tokenizer, made.vocabulary.tokenizer)
    head = _own_head(compiled, made)
    if head is not None:
        config = with_head_of_its_own(config, is_tied_by_default=head not in donor.tensors)
    return merged_config(config, made.dtype)


def doubts_about_config(compiled: Compiled) -> Iterator[Problem]:
    """A warning for everything in an output's config.json that other layers may have made wrong."""
    for made in compiled.outputs:
        if made.donor.config and made.stacks:
            _, doubts = _with_layers(compiled, made)
            for doubt in doubts:
                yield Problem(f"{made.output.step}: {doubt}", made.output.position, severity="warning")


def _with_layers(compiled: Compiled, made: CompiledOutput) -> tuple[dict[str, object], list[str]]:
    donor = made.donor
    if not made.stacks:
        return dict(donor.config), []

    @cache
    def layout(reference: ModelReference) -> Layout:
        return infer_layout(compiled.checkpoints[reference].tensors)

    own = infer_layout(donor.tensors).stacks
    stacks = []
    for stack in made.stacks:
        layers = tuple(
            SourceLayer(compiled.checkpoints[source].config, layer, layout(source).stacks.get(stack.prefix, layer + 1))
            for source, layer in stack.layers
        )
        stacks.append(Stacked(stack.prefix, own.get(stack.prefix, 0), layers))
    return with_layers(donor.config, stacks, list(own))


def _rows(made: CompiledOutput) -> int | None:
    """How many rows the output's embedding has, when that is not what the donor's has."""
    donor = made.donor
    shapes = {name: tensor.shape for name, tensor in donor.tensors.items()}
    names = vocabulary_tensors(shapes, donor.config)
    now = {tensor.name: tensor.shape for tensor in made.tensors}
    return next((rows_of(now[name]) for name in names if now.get(name, shapes[name]) != shapes[name]), None)


def _own_head(compiled: Compiled, made: CompiledOutput) -> str | None:
    """The name of the output's head, when it is not the same matrix as the embedding."""
    graph = compiled.graph

    def is_same(left: OutputTensor, right: OutputTensor) -> bool:
        keys = {graph[left.node].key, graph[right.node].key}
        return left.node == right.node or (len(keys) == 1 and None not in keys)

    embeddings = [tensor for tensor in made.tensors if is_embedding(tensor.name) and len(tensor.shape) == 2]
    for head in made.tensors:
        alike = [tensor for tensor in embeddings if tensor.shape == head.shape]
        if is_head(head.name) and alike and not any(is_same(head, tensor) for tensor in alike):
            return head.name
    return None
