"""Which tensors have a row for each token; and chat templates."""

from __future__ import annotations

import pytest

from mergeflow.models.chat_templates import BUILT_IN, chosen_template, template_fault
from mergeflow.models.vocabulary import vocabulary_hint, vocabulary_rows, vocabulary_tensors

LAYER = {"model.layers.0.mlp.weight": (64, 64), "model.layers.0.embed_tokens.weight": (64, 8)}


@pytest.mark.parametrize(
    ("names", "others"),
    [
        (["model.embed_tokens.weight", "lm_head.weight", "lm_head.bias"], ["model.embed_positions.weight"]),
        (["transformer.wte.weight"], ["transformer.wpe.weight"]),
        (["gpt_neox.embed_in.weight", "embed_out.weight"], []),
        (
            ["bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight", "cls.predictions.bias"],
            ["bert.embeddings.position_embeddings.weight", "bert.embeddings.token_type_embeddings.weight"],
        ),
        (["shared.weight", "encoder.embed_tokens.weight", "lm_head.weight"], ["classifier.weight"]),
        (["language_model.model.embed_tokens.weight"], ["vision.patch_embedding.weight", "projector.weight"]),
        (["backbone.embeddings.weight"], []),
    ],
)
def test_embeddings_and_heads_are_told_by_name_and_size(names: list[str], others: list[str]) -> None:
    """What embeds tokens or scores them, with as many rows; never positions, types, or what lies in a layer."""
    shapes: dict[str, tuple[int, ...]] = {**LAYER, **dict.fromkeys(others, (64, 8))}
    shapes |= {name: (64,) if name.endswith("bias") else (64, 8) for name in names}
    assert set(vocabulary_tensors(shapes, {"vocab_size": 64})) == set(names)


def test_the_vocabulary_is_the_one_the_configuration_states() -> None:
    """Of embeddings of several sizes it is the one of `vocab_size`, nested or not; without one, the first."""
    shapes = {"codec.embed_tokens.weight": (9, 8), "model.embed_tokens.weight": (64, 8), "lm_head.weight": (64, 8)}
    assert vocabulary_rows(shapes, {"text_config": {"vocab_size": 64}}) == 64
    assert vocabulary_tensors(shapes, {"vocab_size": 64}) == ("model.embed_tokens.weight", "lm_head.weight")
    assert vocabulary_rows(shapes, {}) == 9
    assert vocabulary_rows({"a.weight": (2, 2)}, {"vocab_size": 2}) is None


def test_a_message_about_shapes_names_the_way_out() -> None:
    """Only where it is the number of rows of a vocabulary tensor that differs."""
    assert "union" in vocabulary_hint("lm_head.weight", [64, 8], [66, 8])
    assert vocabulary_hint("lm_head.weight", [64, 8], [64, 9]) == ""
    assert vocabulary_hint("norm.weight", [64], [66]) == ""


def test_auto_is_the_most_frequent_template_and_the_first_of_equals() -> None:
    """Blanks around a template do not count; models without one do not vote."""
    assert chosen_template("auto", ["a", " b ", None, "b"]) == "b"
    assert chosen_template("auto", ["a", "b"]) == "a"
    assert chosen_template("auto", [None, "  "]) is None
    assert chosen_template("{{ messages }} as they are", []) == "{{ messages }} as they are"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("chatml", "<|im_start|>system\nbe kind<|im_end|>\n<|im_start|>user\n hi <|im_end|>\n<|im_start|>assistant\n"),
        (
            "llama3",
            "<s><|start_header_id|>system<|end_header_id|>\n\nbe kind<|eot_id|><|start_header_id|>user<|end_header_id|>"
            "\n\nhi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        ("mistral", "<s>[INST] be kind\n\n hi  [/INST]"),
        ("exaone", "[|system|]be kind[|endofturn|]\n[|user|] hi \n[|assistant|]"),
        ("alpaca", "be kind\n\n### Instruction:\nhi\n\n### Response:\n"),
    ],
)
def test_built_in_templates_render_their_formats(name: str, expected: str) -> None:
    """A system message, a user's turn and the opening of the assistant's."""
    jinja2 = pytest.importorskip("jinja2.sandbox")
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": " hi "}]
    environment = jinja2.ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(BUILT_IN[name]).render(
        messages=messages, bos_token="<s>", eos_token="</s>", add_generation_prompt=True
    )
    assert text == expected
    assert template_fault(BUILT_IN[name]) is None


def test_a_template_with_a_mistake_is_found_before_the_run() -> None:
    """mergekit finds it after the weights are written (quirk 24)."""
    assert "line 1" in (template_fault("{% for message in messages %}never closed") or "")
    assert template_fault("{% generation %}{{ messages }}{% endgeneration %}") is None
