from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_files import GOLDEN

from mergeflow.models.header import read_header
from mergeflow.models.layout import infer_layout

LLAMA = [
    "model.embed_tokens.weight",
    *(f"model.layers.{i}.self_attn.q_proj.weight" for i in range(5)),
    *(f"model.layers.{i}.input_layernorm.weight" for i in range(5)),
    "model.norm.weight",
    "lm_head.weight",
]


def test_a_layer_is_the_number_in_its_names() -> None:
    """Layer k of L layers stands at k / (L - 1) on a gradient."""
    layout = infer_layout(LLAMA)
    assert layout.stacks == {"model.layers": 5}
    assert layout.gradient_position("model.layers.3.self_attn.q_proj.weight") == 0.75
    assert layout.gradient_position("model.layers.3.input_layernorm.weight") == 0.75
    assert layout.place("model.layers.3.input_layernorm.weight").layer == 3


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_outside_the_layers_a_gradient_has_its_first_value(name: str) -> None:
    """Also after the layers: mergekit gives final norm and head the first value, and configurations rely on it."""
    assert infer_layout(LLAMA).gradient_position(name) == 0.0


def test_the_only_layer_takes_the_last_value() -> None:
    """A one-layer model stands at 1, as in mergekit."""
    assert infer_layout(["h.0.attn.weight"]).gradient_position("h.0.attn.weight") == 1.0


def test_experts_belong_to_their_layer() -> None:
    """A number inside a layer starts no stack."""
    layout = infer_layout([f"model.layers.{i}.mlp.experts.{e}.w1.weight" for i in range(3) for e in range(8)])
    assert layout.stacks == {"model.layers": 3}
    assert layout.gradient_position("model.layers.1.mlp.experts.7.w1.weight") == 0.5


@pytest.mark.parametrize("stack", ["h", "layers", "blocks"])
def test_a_stack_may_stand_at_the_start_of_a_name(stack: str) -> None:
    """Models saved without their head have no prefix: h.0.attn.c_attn.weight."""
    layout = infer_layout([f"{stack}.{i}.attn.c_attn.weight" for i in range(3)] + ["wte.weight", "ln_f.weight"])
    assert layout.stacks == {stack: 3}
    assert layout.place("ln_f.weight").stack == stack


def test_layers_may_differ_from_each_other() -> None:
    """A dense layer, one with experts and one of another kind are layers of one stack."""
    names = [
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.1.mlp.experts.0.w1.weight",
        "model.layers.2.mamba.A_log",
    ]
    assert infer_layout(names).stacks == {"model.layers": 3}


def test_experts_outside_every_layer_are_no_stack() -> None:
    """They run side by side, not one behind the other."""
    names = [f"moe.experts.{e}.up.weight" for e in range(4)]
    assert infer_layout([*LLAMA, *names]).stacks == {"model.layers": 5}


def test_every_stack_has_its_own_ramp() -> None:
    """Encoder and decoder of different depth both run from 0 to 1."""
    names = [f"encoder.block.{i}.layer.0.k.weight" for i in range(3)]
    names += [f"decoder.block.{i}.layer.0.k.weight" for i in range(5)]
    layout = infer_layout([*names, "shared.weight", "decoder.final_layer_norm.weight"])
    assert layout.stacks == {"decoder.block": 5, "encoder.block": 3}
    assert layout.gradient_position("encoder.block.2.layer.0.k.weight") == 1.0
    assert layout.gradient_position("decoder.block.2.layer.0.k.weight") == 0.5
    assert layout.place("decoder.final_layer_norm.weight").stack == "decoder.block"
    assert layout.place("shared.weight").stack is None


def test_a_leading_number_is_a_module_not_a_layer() -> None:
    """sentence-transformers nests the model in a torch Sequential: 0.auto_model...."""
    layout = infer_layout(
        [f"0.auto_model.encoder.layer.{i}.output.dense.weight" for i in range(6)] + ["2.linear.weight"]
    )
    assert layout.stacks == {"0.auto_model.encoder.layer": 6}
    assert layout.gradient_position("2.linear.weight") == 0.0


@pytest.mark.parametrize("name", ["mm_projector.2.weight", "classifier.0.bias", "visual.merger.mlp.0.weight"])
def test_a_list_of_single_matrices_is_no_stack(name: str) -> None:
    """Numbered members without parts of their own are layers of a projector, not of the model."""
    layout = infer_layout([*LLAMA, name])
    assert layout.stacks == {"model.layers": 5}
    assert layout.gradient_position(name) == 0.0


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("model.embed_tokens.weight", "before"),
        ("transformer.wpe.weight", "before"),
        ("bert.embeddings.LayerNorm.bias", "before"),
        ("shared.weight", "before"),
        ("gpt_neox.embed_in.weight", "before"),
        ("vision_model.pre_layrnorm.weight", "before"),
        ("embed_out.weight", "before"),
        ("model.norm.weight", "after"),
        ("lm_head.weight", "after"),
        ("pre_classifier.weight", "after"),
        ("cls.predictions.transform.dense.weight", "after"),
    ],
)
def test_what_embeds_comes_before_the_layers(name: str, side: str) -> None:
    """Embeddings and positions lie before, norms and heads after."""
    place = infer_layout([*LLAMA, name]).place(name)
    assert (place.side, place.layer, place.stack) == (side, None, "model.layers")


def test_names_that_are_nearly_numbered_do_not_count() -> None:
    """layer1, a number at the end and an absurdly long number are parts of plain names."""
    names = ["features.layer1.conv.weight", "scale.3", "x.99999999999999999999.y.weight", "5", "."]
    layout = infer_layout(names)
    assert layout.stacks == {}
    assert [layout.gradient_position(name) for name in names] == [0.0] * 5


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab.01", max_size=12), max_size=20))
def test_every_name_has_a_place(names: list[str]) -> None:
    """Whatever the names: positions lie between 0 and 1, and each stack's last layer stands at 1."""
    layout = infer_layout(names)
    for name in names:
        assert 0.0 <= layout.gradient_position(name) <= 1.0
        place = layout.place(name)
        assert (place.layer is not None) == (place.side == "inside")
        if place.stack is not None and place.layer == layout.stacks[place.stack] - 1:
            assert layout.gradient_position(name) == 1.0


@pytest.mark.skipif(not GOLDEN.is_dir(), reason="the golden checkpoints are not on this machine")
def test_golden_models_have_the_layers_their_config_says() -> None:
    """Every stack of the golden models has num_hidden_layers layers; T5 has two stacks, the others one."""
    import json

    for folder in sorted((GOLDEN / "models").glob("*/base")):
        config = json.loads((folder / "config.json").read_text())
        count = config.get("num_hidden_layers") or config.get("n_layer") or config["num_layers"]
        layout = infer_layout(read_header(folder / "model.safetensors").tensors)
        assert set(layout.stacks.values()) == {count}
        assert len(layout.stacks) == (2 if config["model_type"] == "t5" else 1)
