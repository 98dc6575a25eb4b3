"""config.json: the donor's, with the number format of the merged weights."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeflow.output.config import merged_config
from mergeflow.output.text import json_text

words = st.sampled_from(["model_type", "text_config", "dtype", "torch_dtype", "layers"]) | st.text(max_size=3)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(0, 9) | words,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(words, inner, max_size=3),
)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"dtype": "float32"}, {"dtype": "bfloat16"}),
        ({"torch_dtype": "float32"}, {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": "torch.float32"}, {"torch_dtype": "bfloat16"}),
        ({"torch_dtype": None}, {"torch_dtype": "bfloat16"}),
        ({"dtype": "float32", "torch_dtype": "float32"}, {"dtype": "bfloat16", "torch_dtype": "bfloat16"}),
        ({"model_type": "llama"}, {"model_type": "llama", "dtype": "bfloat16"}),
        ({}, {"dtype": "bfloat16"}),
    ],
)
def test_the_format_is_written_under_the_donors_own_word(
    config: dict[str, object], expected: dict[str, object]
) -> None:
    """`dtype` or `torch_dtype`, whichever the donor has; `dtype` when it has none."""
    assert merged_config(config, "bfloat16") == expected


def test_nested_configurations_follow_when_they_had_the_format_of_the_whole() -> None:
    """A language model's part follows; a part that was different on purpose, or a quantiser's settings, stay."""
    config = {
        "dtype": "float16",
        "text_config": {"torch_dtype": "float16", "deeper_config": {"dtype": "float16"}},
        "decoder": {"dtype": "float16"},
        "vision_config": {"dtype": "float32"},
        "quantization_config": {"dtype": "float16"},
        "other": {"dtype": "float16"},
    }
    assert merged_config(config, "bfloat16") == {
        "dtype": "bfloat16",
        "text_config": {"torch_dtype": "bfloat16", "deeper_config": {"dtype": "bfloat16"}},
        "decoder": {"dtype": "bfloat16"},
        "vision_config": {"dtype": "float32"},
        "quantization_config": {"dtype": "float16"},
        "other": {"dtype": "float16"},
    }


def test_nested_formats_are_the_format_when_the_whole_states_none() -> None:
    """Without a format at the top, the parts' is the model's: they follow, and the top gets it too."""
    config = {"text_config": {"dtype": "float16"}}
    assert merged_config(config, "bfloat16") == {"text_config": {"dtype": "bfloat16"}, "dtype": "bfloat16"}


@given(st.dictionaries(words, json_values, max_size=4))
def test_nothing_else_changes(config: dict[str, object]) -> None:
    """Whatever the configuration: other fields keep value and order, and the argument is not touched."""

    def without_formats(value: object) -> object:
        if not isinstance(value, dict):
            return value
        return {key: without_formats(item) for key, item in value.items() if key not in ("dtype", "torch_dtype")}

    before = json.dumps(config)
    merged = merged_config(config, "bfloat16")
    assert json.dumps(config) == before
    assert json.dumps(without_formats(merged)) == json.dumps(without_formats(config))


@given(st.dictionaries(words, json_values, max_size=4))
def test_without_a_format_the_donors_configuration_is_the_outputs(config: dict[str, object]) -> None:
    """None for the format leaves everything."""
    assert merged_config(config, None) == config


def test_the_text_is_laid_out_as_transformers_does() -> None:
    """Two spaces, keys in their order, other alphabets as they are, a newline at the end."""
    assert json_text({"b": "é", "a": [1]}) == '{\n  "b": "é",\n  "a": [\n    1\n  ]\n}\n'
