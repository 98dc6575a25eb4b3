"""Slices, modules and tensors that only some models have: which tensors make each tensor of a result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from tiny_checkpoints import llama, llama_tensors, read_model, write_model

import mergeflow
from mergeflow.errors import RecipeError
from mergeflow.execute.events import ignore
from mergeflow.graph.arrange import Arrangement, arrange
from mergeflow.graph.ingredients import parts_of
from mergeflow.graph.stock import Stock
from mergeflow.graph.values import Compiled, Stack
from mergeflow.recipe.read import read_recipe
from mergeflow.recipe.records import Input, ModelReference, Slice, Step
from mergeflow.workflow.models import compile_from_headers

A, B = ModelReference("./a"), ModelReference("./b")


def compiled(folder: Path, text: str) -> Compiled:
    """A recipe's text, compiled in a folder with the models base, a and b of three layers."""
    for seed, name in enumerate(("base", "a", "b")):
        if not (folder / name).exists():
            llama(folder / name, seed, layers=3)
    (folder / "recipe.yaml").write_text(text)
    return compile_from_headers(read_recipe(folder / "recipe.yaml"), ignore, download=False)


def merged(folder: Path, text: str) -> dict[str, torch.Tensor]:
    """The tensors that a recipe writes."""
    assert [it for it in compiled(folder, text).problems if it.severity == "error"] == []
    mergeflow.run(folder / "recipe.yaml", folder / "out", options=mergeflow.Options(cache=None))
    return read_model(folder / "out")


def messages(found: Compiled) -> list[str]:
    """What was found, but for what config.json does not say: the models here have next to none."""
    return [problem.message for problem in found.problems if "config.json" not in problem.message]


def stock(*names: str, shape: tuple[int, ...] = (2, 2), config: Mapping[str, object] | None = None) -> Stock:
    return Stock("m", "weights", dict.fromkeys(names, shape), config or {})


def layers(*parts: str, count: int = 3, outside: tuple[str, ...] = ()) -> Stock:
    """A stack of equal layers with these parts."""
    return stock(*outside, *(f"model.layers.{layer}.{part}" for layer in range(count) for part in parts))


def stacked(*slices: tuple[tuple[ModelReference, int, int], ...]) -> Step:
    """A step of slices, each of (model, first layer, the one behind the last)."""
    made = tuple(Slice(tuple(Input(model, {}, None, (a, b)) for model, a, b in sources)) for sources in slices)
    return Step("s", "linear", (), slices=made)


def arranged(step: Step, **stocks: Stock) -> Arrangement:
    found = {ModelReference(f"./{name}"): it for name, it in stocks.items()}
    return arrange(parts_of(step), found, next(iter(found)))


class TestSlices:
    def test_layers_are_renumbered_and_ramps_start_again(self) -> None:
        """Each slice's layers follow those before, at gradient positions from 0 to 1 (a lone layer at 1)."""
        one = layers("mlp.up")
        made = arranged(stacked(((A, 0, 2),), ((A, 1, 3), (B, 0, 2)), ((B, 2, 3),)), a=one, b=one)
        assert [(entry.name[13:14], entry.names, entry.t) for entry in made.entries] == [
            ("0", ("model.layers.0.mlp.up",), 0.0),
            ("1", ("model.layers.1.mlp.up",), 1.0),
            ("2", ("model.layers.1.mlp.up", "model.layers.0.mlp.up"), 0.0),
            ("3", ("model.layers.2.mlp.up", "model.layers.1.mlp.up"), 1.0),
            ("4", ("model.layers.2.mlp.up",), 1.0),
        ]
        assert made.stacks[0].layers == ((A, 0), (A, 1), (A, 1), (A, 2), (B, 2))

    def test_embeddings_are_the_first_slices_and_the_rest_the_last_ones(self) -> None:
        """All sources of the last slice take part in the norm and the head, also when the first has fewer."""
        one = layers("mlp.up", outside=("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"))
        made = arranged(stacked(((A, 0, 1),), ((A, 1, 2), (B, 1, 2))), a=one, b=one)
        outside = {entry.name: len(entry.names) for entry in made.entries if "layers" not in entry.name}
        assert outside == {"model.embed_tokens.weight": 1, "model.norm.weight": 2, "lm_head.weight": 2}
        assert all(entry.t == 0 for entry in made.entries if entry.name in outside)

    def test_layers_that_differ_pair_by_name(self) -> None:
        """A dense layer beside one of experts: what both have is paired, the rest is marked as lacking."""
        dense, sparse = layers("attn.q", "mlp.up"), layers("attn.q", "mlp.experts.0.up")
        made = arranged(stacked(((A, 0, 1), (B, 2, 3))), a=dense, b=sparse)
        assert {entry.name: entry.names for entry in made.entries} == {
            "model.layers.0.attn.q": ("model.layers.0.attn.q", "model.layers.2.attn.q"),
            "model.layers.0.mlp.up": ("model.layers.0.mlp.up", None),
            "model.layers.0.mlp.experts.0.up": (None, "model.layers.2.mlp.experts.0.up"),
        }

    def test_a_range_beyond_the_layers(self, tmp_path: Path) -> None:
        """An error at the range, with its line and the number of layers there are."""
        text = "merge_method: passthrough\nslices:\n- sources:\n  - {model: a, layer_range: [2, 5]}\n"
        (problem,) = compiled(tmp_path, text).problems
        assert "has 3 layers in model.layers; [2, 5] goes beyond them" in problem.message
        assert (problem.path, problem.severity) == ("slices[0].sources[0].layer_range", "error")
        assert problem.position is not None
        assert problem.position.line == 4

    def test_a_slice_without_the_base(self, tmp_path: Path) -> None:
        """A method that needs its base needs the base's layers in each slice."""
        text = (
            "merge_method: task_arithmetic\nbase_model: base\nparameters: {weight: 1}\n"
            "slices: [{sources: [{model: a, layer_range: [0, 3]}]}]\n"
        )
        (problem,) = compiled(tmp_path, text).problems
        assert "needs the layers of its base, base, among the sources" in problem.message
        assert problem.path == "slices[0].sources"

    def test_a_model_twice_in_a_slice(self, tmp_path: Path) -> None:
        """Two entries of one model are refused, as in mergekit."""
        text = (
            "merge_method: linear\nparameters: {weight: 1}\nslices:\n"
            "- sources: [{model: a, layer_range: [0, 1]}, {model: a, layer_range: [1, 2]}]\n"
        )
        (problem,) = compiled(tmp_path, text).problems
        assert "listed twice" in problem.message
        assert problem.path == "slices[0].sources[1].model"

    def test_several_stacks_cannot_be_sliced(self) -> None:
        """The stacks are named, and `modules` is the way out."""
        both = stock("encoder.block.0.a.w", "decoder.block.0.a.w")
        (finding,) = arranged(stacked(((A, 0, 1),)), a=both).findings
        assert "decoder.block, encoder.block" in finding.message
        assert "modules" in finding.message

    def test_filters_match_input_names_for_inputs_and_output_names_for_all(self, tmp_path: Path) -> None:
        """layers.2 of an input is layer 1 of the result here: weight sees the one, normalize the other."""
        text = """
merge_method: linear
slices:
- sources:
  - {model: a, layer_range: [1, 3], parameters: {weight: [{filter: layers.2., value: 5}, {value: 1}]}}
  - {model: b, layer_range: [0, 2], parameters: {weight: 2}}
parameters: {normalize: [{filter: layers.1., value: false}, {value: true}]}
"""
        found = compiled(tmp_path, text)
        assert messages(found) == []
        made = found.results["merge"].parameters["model.layers.1.input_layernorm.weight"]
        assert (made.shared["normalize"], made.inputs[0]["weight"]) == (False, 5.0)
        other = found.results["merge"].parameters["model.layers.0.input_layernorm.weight"]
        assert (other.shared["normalize"], other.inputs[0]["weight"]) == (True, 1.0)

    def test_repeated_layers_are_the_same_values(self, tmp_path: Path) -> None:
        """A stack that uses a layer ten times has no more in its graph than one that uses it once."""
        one = "- sources: [{model: a, layer_range: [1, 2]}]\n"
        sizes = [
            len(compiled(tmp_path, f"merge_method: passthrough\ndtype: bfloat16\nslices:\n{one * times}").graph)
            for times in (1, 10)
        ]
        assert sizes[0] == sizes[1]

    def test_a_stack_remembers_its_models_through_steps(self, tmp_path: Path) -> None:
        """What the second step stacks are layers of the models that the first one stacked."""
        text = """
mergeflow: 1
models: {a: ./a, b: ./b}
steps:
  first:
    merge_method: passthrough
    slices: [{sources: [{model: a, layer_range: [0, 2]}]}, {sources: [{model: b, layer_range: [0, 3]}]}]
  second:
    merge_method: passthrough
    slices: [{sources: [{model: first, layer_range: [1, 4]}]}]
outputs: {second: {path: ./out}}
"""
        found = compiled(tmp_path, text)
        assert messages(found) == []
        assert found.outputs[0].stacks == (Stack("model.layers", ((A, 1), (B, 0), (B, 1))),)


class TestLaws:
    def test_slices_over_all_layers_are_the_models(self, tmp_path: Path) -> None:
        """One slice of every layer gives the nodes that the list of models gives."""
        whole = """
merge_method: slerp
base_model: a
models: [{model: a}, {model: b}]
parameters: {t: [0.1, 0.5, 0.9]}
"""
        sliced = whole.replace("models: [{model: a}, {model: b}]", "slices: [{sources: [SOURCES]}]").replace(
            "SOURCES", "{model: a, layer_range: [0, 3]}, {model: b, layer_range: [0, 3]}"
        )
        first, second = merged(tmp_path, whole), merged(tmp_path, sliced)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)

    @settings(max_examples=8, deadline=None)
    @given(cut=st.integers(0, 3))
    def test_a_model_cut_and_put_together_is_itself(self, cut: int) -> None:
        """Two slices of one model, wherever it is cut, have its tensors under their own names."""
        one = layers("attn.q", "mlp.up", outside=("embed.weight", "norm.weight"))
        made = arranged(stacked(((A, 0, cut),), ((A, cut, 3),)), a=one)
        assert {entry.name: entry.names for entry in made.entries} == {name: (name,) for name in one.shapes}
        assert made.findings == []


class TestModules:
    VISION = ("model.visual.blocks.0.attn.q", "model.visual.blocks.1.attn.q", "model.visual.patch_embed.weight")
    TEXT = ("model.language_model.layers.0.mlp.up", "model.language_model.embed_tokens.weight", "lm_head.weight")

    def write(self, folder: Path) -> None:
        for seed, name in enumerate(("a", "b")):
            generator = torch.Generator().manual_seed(seed)
            names = (*self.VISION, *self.TEXT, "model.visual.merger.linear.weight")
            write_model(folder / name, {it: torch.randn(3, 3, generator=generator) for it in names})

    def test_each_module_has_its_own_models(self, tmp_path: Path) -> None:
        """mergekit's names find the stacks; a loose tensor goes with the stack it is nearest to."""
        self.write(tmp_path)
        text = """
merge_method: passthrough
modules:
  text_decoder: {models: [{model: a}]}
  vision_tower: {slices: [{sources: [{model: b, layer_range: [1, 2]}]}]}
  multi_modal_projector: {models: [{model: b}]}
"""
        made = merged(tmp_path, text)
        a, b = read_model(tmp_path / "a"), read_model(tmp_path / "b")
        expected = {name: a[name] for name in self.TEXT} | {
            "model.visual.blocks.0.attn.q": b["model.visual.blocks.1.attn.q"],
            "model.visual.patch_embed.weight": b["model.visual.patch_embed.weight"],
            "model.visual.merger.linear.weight": b["model.visual.merger.linear.weight"],
        }
        assert made.keys() == expected.keys()
        assert all(torch.equal(made[name], expected[name]) for name in expected)

    def test_a_module_left_out_is_carried_over(self, tmp_path: Path) -> None:
        """What no module takes comes from the base (or the first model) unchanged, with a warning."""
        self.write(tmp_path)
        text = "merge_method: passthrough\nmodules: {text_decoder: {models: [{model: a}]}}\n"
        found = compiled(tmp_path, text)
        (warning,) = found.problems
        assert warning.severity == "warning"
        assert "no module takes model.visual.blocks.0.attn.q" in warning.message
        assert len(found.results["merge"].tensors) == 7

    def test_a_name_that_is_no_module(self, tmp_path: Path) -> None:
        """An error with the nearest name."""
        self.write(tmp_path)
        text = "merge_method: passthrough\nmodules: {text_decodr: {models: [{model: a}]}}\n"
        (message,) = messages(compiled(tmp_path, text))
        assert message == "there is no module 'text_decodr'; did you mean 'text_decoder'?"


class TestLacking:
    """A third model, c, and tensors that not all have."""

    def models(self, folder: Path, **extra: dict[str, torch.Tensor]) -> None:
        for seed, name in enumerate(("base", "a", "b")):
            write_model(folder / name, llama_tensors(seed, 3) | extra.get(name, {}))

    LINEAR = """
merge_method: linear
models:
- {model: a, parameters: {weight: 1}}
- {model: b, parameters: {weight: 3}}
- {model: base, parameters: {weight: 1}}
parameters: {normalize: NORMALIZE}
"""

    def test_one_model_alone(self, tmp_path: Path) -> None:
        """It is carried over, not weighted, and the warning says so."""
        bias = torch.ones(4)
        self.models(tmp_path, b={"model.extra.bias": bias})
        text = self.LINEAR.replace("NORMALIZE", "false")
        assert torch.equal(merged(tmp_path, text)["model.extra.bias"], bias)
        assert messages(compiled(tmp_path, text)) == ["a, base lack model.extra.bias: carried over unchanged from b"]

    def test_those_that_have_it(self, tmp_path: Path) -> None:
        """Two of three: merged from the two."""
        self.models(tmp_path, a={"model.extra.bias": torch.ones(4)}, b={"model.extra.bias": torch.full((4,), 5.0)})
        text = self.LINEAR.replace("NORMALIZE", "true")
        assert merged(tmp_path, text)["model.extra.bias"].tolist() == [4.0] * 4

    TASK = """
merge_method: task_arithmetic
base_model: base
models: [{model: a}, {model: b}]
parameters: {weight: 0.5}
"""

    def test_the_base_alone(self, tmp_path: Path) -> None:
        """The base's own value."""
        self.models(tmp_path, base={"model.extra.bias": torch.ones(4)})
        assert merged(tmp_path, self.TASK)["model.extra.bias"].tolist() == [1.0] * 4

    @pytest.mark.parametrize("equal", [True, False])
    def test_all_but_the_base(self, tmp_path: Path, equal: bool) -> None:
        """Equal: carried over. Different: an error, for there is nothing to add the differences to."""
        self.models(tmp_path, a={"z": torch.ones(4)}, b={"z": torch.full((4,), 1.0 if equal else 2.0)})
        (tmp_path / "recipe.yaml").write_text(self.TASK)
        arguments = (tmp_path / "recipe.yaml", tmp_path / "out")
        if equal:
            mergeflow.run(*arguments, options=mergeflow.Options(cache=None))
            assert read_model(tmp_path / "out")["z"].tolist() == [1.0] * 4
        else:
            with pytest.raises(RecipeError, match="cannot merge z without base"):
                mergeflow.run(*arguments, options=mergeflow.Options(cache=None))

    def test_integers_that_some_lack(self, tmp_path: Path) -> None:
        """A buffer of some models is carried along."""
        ids = torch.arange(4)
        self.models(tmp_path, a={"position_ids": ids}, b={"position_ids": ids})
        assert torch.equal(merged(tmp_path, self.TASK)["position_ids"], ids)

    def test_a_delta_that_lacks_a_tensor_changes_nothing(self, tmp_path: Path) -> None:
        """The mean of a delta and one that lacks a tensor is half of it; added, the base stays where all lack it."""
        self.models(tmp_path)
        for name in ("base", "a"):
            folder = tmp_path / f"{name}_small"
            tensors = read_model(tmp_path / name)
            del tensors["model.norm.weight"]
            write_model(folder, tensors)
        text = """
mergeflow: 1
models: {base: ./base, a: ./a, b: ./b, base_small: ./base_small, a_small: ./a_small}
steps:
  da: {task_vector: {model: a_small, base: base_small}}
  db: {task_vector: {model: b, base: base}}
  mean: {merge_method: linear, models: [{model: da}, {model: db}], parameters: {weight: 0.5}}
  out: {merge_method: task_arithmetic, base_model: base, models: [{model: mean}], parameters: {weight: 1}}
outputs: {out: {path: ./out}}
"""
        made = merged(tmp_path, text)["model.norm.weight"]
        base, b = (read_model(tmp_path / name)["model.norm.weight"] for name in ("base", "b"))
        assert torch.allclose(made, base + 0.5 * (b - base))
        assert messages(compiled(tmp_path, text)) == []

    def test_a_tied_head_is_the_embedding(self, tmp_path: Path) -> None:
        """Beside a model with a head, a tied one gives its embedding; tied models alone give no head."""
        config: dict[str, object] = {"model_type": "llama", "tie_word_embeddings": True}
        tensors = llama_tensors(1, 3)
        head = tensors.pop("lm_head.weight")
        write_model(tmp_path / "a", tensors, config=config)
        text = "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 0.5}\n"
        made = merged(tmp_path, text)
        b = read_model(tmp_path / "b")["lm_head.weight"]
        assert torch.allclose(made["lm_head.weight"], (tensors["model.embed_tokens.weight"] + b) / 2)
        write_model(tmp_path / "b", llama_tensors(2, 3) | {"lm_head.weight": head}, config=config)
        save_file(tensors, tmp_path / "b" / "model.safetensors")
        assert "lm_head.weight" not in merged(tmp_path, text)

    def test_models_of_different_architectures(self, tmp_path: Path) -> None:
        """Where hardly a name is the same, it is one error."""
        write_model(tmp_path / "a", {f"h.{layer}.attn.c.weight": torch.ones(2) for layer in range(3)})
        (message,) = messages(
            compiled(tmp_path, "merge_method: linear\nmodels: [{model: a}, {model: b}]\nparameters: {weight: 1}\n")
        )
        assert "they are of different architectures" in message
