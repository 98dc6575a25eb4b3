"""config.json of a model with other layers than the donor: counts, lists, lists of numbers, of nested configurations."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mergeflow.models.config_parts import nested_configs
from mergeflow.models.config_vocabulary import with_head_of_its_own, with_vocab_size
from mergeflow.output.config_layers import SourceLayer, Stacked, with_layers

Config = Mapping[str, object]


def stacked(config: Config, layers: Sequence[int], name: str = "model.layers", depth: int = 4) -> Stacked:
    """A stack whose layers are all from the donor."""
    return Stacked(name, depth, tuple(SourceLayer(config, layer, depth) for layer in layers))


def mended(config: Config, layers: Sequence[int], name: str = "model.layers", depth: int = 4) -> Config:
    """The configuration of a stack made of the donor's layers; there must be no doubt."""
    result, doubts = with_layers(config, [stacked(config, layers, name, depth)], [name])
    assert doubts == []
    return result


@pytest.mark.parametrize(
    "key",
    ["num_hidden_layers", "n_layer", "n_layers", "num_layers", "num_blocks", "depth", "num_transformer_layers"],
)
def test_the_number_of_layers_has_many_names(key: str) -> None:
    """Whatever the key: it names layers and holds how many there were, so it gets how many there are."""
    assert mended({key: 4, "num_heads": 4}, [0, 1, 2, 1, 2, 3]) == {key: 6, "num_heads": 4}


def test_a_number_that_counts_something_else_stays() -> None:
    """Equal by chance: heads, groups, a feature's layer, labels."""
    config = {"num_hidden_layers": 4, "num_attention_heads": 4, "mlp_num_layers": 4, "vision_feature_layer": 4}
    assert mended(config, [0, 1]) == config | {"num_hidden_layers": 2}


def test_what_is_said_of_each_layer_goes_with_the_layer() -> None:
    """Types, flags, numbers of heads, blocks, and a text of one letter for each layer."""
    config = {
        "n_layer": 4,
        "layer_types": ["full", "sliding", "linear", "full"],
        "no_rope_layers": [1, 1, 0, 1],
        "num_kv_heads": [1, 2, 4, 8],
        "block_configs": [{"a": 0}, {"a": 1}, {"a": 2}, {"a": 3}],
        "hybrid_override_pattern": "M-*E",
        "eos_token_id": [1, 2, 3, 4],
        "image_mean": [1, 2, 3, 4],
    }
    assert mended(config, [0, 2, 2, 3, 1]) == {
        "n_layer": 5,
        "layer_types": ["full", "linear", "linear", "full", "sliding"],
        "no_rope_layers": [1, 0, 0, 1, 1],
        "num_kv_heads": [1, 4, 4, 8, 2],
        "block_configs": [{"a": 0}, {"a": 2}, {"a": 2}, {"a": 3}, {"a": 1}],
        "hybrid_override_pattern": "M**E-",
        "eos_token_id": [1, 2, 3, 4],
        "image_mean": [1, 2, 3, 4],
    }


def test_runs_of_types_are_written_out() -> None:
    """GPT-Neo's attention_types: patterns and how often they come."""
    config = {"num_layers": 4, "attention_types": [[["global", "local"], 2]]}
    assert mended(config, [1, 2]) == {"num_layers": 2, "attention_types": [[["local"], 1], [["global"], 1]]}


def test_lists_of_layers_name_the_outputs_layers() -> None:
    """mlp_only_layers and fullatt_block_indexes: all output layers that are from those."""
    config = {"num_hidden_layers": 4, "mlp_only_layers": [1, 3], "fullatt_block_indexes": [2], "only_layers": []}
    assert mended(config, [0, 1, 2, 1, 2, 3]) == {
        "num_hidden_layers": 6,
        "mlp_only_layers": [1, 3, 5],
        "fullatt_block_indexes": [2, 4],
        "only_layers": [],
    }


def test_a_list_of_all_layers_is_told_from_a_list_for_each_by_its_key() -> None:
    """[0, 1] of two layers: both of them, where the key says which; off and on, where it does not."""
    config = {"num_hidden_layers": 2, "mlp_only_layers": [0, 1], "no_rope_layers": [0, 1]}
    assert mended(config, [0, 1, 1], depth=2) == {
        "num_hidden_layers": 3,
        "mlp_only_layers": [0, 1, 2],
        "no_rope_layers": [0, 1, 1],
    }


def test_each_layers_own_model_is_asked() -> None:
    """A layer that is from another model, of another depth, has what that model says of it."""
    donor = {"num_hidden_layers": 2, "layer_types": ["full", "full"], "mlp_only_layers": [0], "n_kv": [1, 1]}
    other = {"num_hidden_layers": 3, "layer_types": ["full", "sliding", "linear"], "mlp_only_layers": [2]}
    layers = (SourceLayer(donor, 0, 2), SourceLayer(other, 1, 3), SourceLayer(other, 2, 3), SourceLayer(donor, 1, 2))
    result, doubts = with_layers(donor, [Stacked("model.layers", 2, layers)], ["model.layers"])
    assert doubts == []
    assert result == {
        "num_hidden_layers": 4,
        "layer_types": ["full", "sliding", "linear", "full"],
        "mlp_only_layers": [0, 2],
        "n_kv": [1, 1, 1, 1],
    }


def test_the_first_layers_of_another_kind_are_counted_anew() -> None:
    """DeepSeek's dense layers: as many as now come first; impossible to say when one comes later."""
    config = {"num_hidden_layers": 4, "first_k_dense_replace": 2}
    assert mended(config, [0, 1, 1, 2, 3])["first_k_dense_replace"] == 3
    assert mended(config, [1, 2, 3])["first_k_dense_replace"] == 1
    result, doubts = with_layers(config, [stacked(config, [0, 1, 2, 0, 1])], ["model.layers"])
    assert result["first_k_dense_replace"] == 2
    assert len(doubts) == 1
    assert "first_k_dense_replace is 2" in doubts[0]


@pytest.mark.parametrize(("layers", "is_sound"), [([0, 1, 2, 3, 0, 1], True), ([0, 1, 1, 2], False)])
def test_every_second_layer_must_stay_every_second(layers: list[int], is_sound: bool) -> None:
    """A period counts by position: where layers stand at odd places now that stood at even ones, we say so."""
    config = {"num_hidden_layers": 4, "decoder_sparse_step": 2, "time_step_rank": 2}
    result, doubts = with_layers(config, [stacked(config, layers)], ["model.layers"])
    assert result["decoder_sparse_step"] == 2
    assert [("decoder_sparse_step is 2" in doubt) for doubt in doubts] == ([] if is_sound else [True])


def test_a_period_is_no_doubt_where_every_layer_is_listed() -> None:
    """Loaders read layer_types where it is given, and the pattern only where it is not."""
    config = {"num_hidden_layers": 2, "sliding_window_pattern": 2, "layer_types": ["full", "sliding"]}
    assert mended(config, [0, 0, 1], depth=2)["layer_types"] == ["full", "full", "sliding"]


def test_layers_that_predict_further_tokens_are_not_counted() -> None:
    """DeepSeek V3 numbers its predictor as one more layer, which num_hidden_layers does not count."""
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1, "layer_types": ["a", "b", "c", "d"]}
    without = {"num_hidden_layers": 5, "num_nextn_predict_layers": 0, "layer_types": ["a", "b", "a", "c", "d"]}
    assert mended(config, [0, 1, 0, 2, 3], depth=5) == without
    assert mended(config, [0, 1, 3, 4], depth=5) == {
        "num_hidden_layers": 3,
        "num_nextn_predict_layers": 1,
        "layer_types": ["a", "b", "d"],
    }


def test_a_predictor_in_the_midst_of_the_layers_is_said() -> None:
    """It would be run as if it were one of the model's own layers."""
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
    _, doubts = with_layers(config, [stacked(config, [0, 4, 1], depth=5)], ["model.layers"])
    assert len(doubts) == 1
    assert "only predict further tokens" in doubts[0]


def test_a_predictor_that_the_checkpoint_lacks_is_not_subtracted() -> None:
    """transformers writes how many there were also when it saved none of them."""
    config = {"num_hidden_layers": 4, "num_nextn_predict_layers": 1}
    assert mended(config, [0, 1, 2, 1, 3]) == config | {"num_hidden_layers": 5}


TWO_STACKS = ("encoder.block", "decoder.block")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"num_layers": 4, "num_decoder_layers": 4}, {"num_layers": 4, "num_decoder_layers": 2}),
        (
            {"encoder_layers": 4, "decoder_layers": 4, "num_hidden_layers": 4},
            {"encoder_layers": 4, "decoder_layers": 2, "num_hidden_layers": 4},
        ),
        (
            {"encoder": {"n_layer": 4}, "decoder": {"n_layer": 4}},
            {"encoder": {"n_layer": 4}, "decoder": {"n_layer": 2}},
        ),
    ],
)
def test_encoder_and_decoder_have_keys_of_their_own(config: Config, expected: Config) -> None:
    """Of equal depth, too: what says decoder is the decoder's, and what says neither is the encoder's."""
    result, doubts = with_layers(config, [stacked(config, [0, 3], "decoder.block")], TWO_STACKS)
    assert (result, doubts) == (expected, [])


def test_a_decoder_alone_has_the_plain_keys() -> None:
    """OPT's only stack is model.decoder.layers, BERT's encoder.layer."""
    assert mended({"num_hidden_layers": 4}, [0], "model.decoder.layers") == {"num_hidden_layers": 1}
    assert mended({"num_hidden_layers": 4}, [0], "bert.encoder.layer") == {"num_hidden_layers": 1}


VISION_LANGUAGE = {
    "num_hidden_layers": 4,
    "text_config": {"num_hidden_layers": 4, "layer_types": ["a", "b", "c", "d"]},
    "vision_config": {"depth": 4, "fullatt_block_indexes": [3]},
    "quantization_config": {"num_hidden_layers": 4},
}


def test_each_part_of_a_model_has_its_configuration() -> None:
    """The language model is described by the outermost configuration and by text_config, the vision tower by its own."""
    names = ["model.layers", "visual.blocks"]
    result, doubts = with_layers(VISION_LANGUAGE, [stacked(VISION_LANGUAGE, [3, 1])], names)
    changed = {"num_hidden_layers": 2, "text_config": {"num_hidden_layers": 2, "layer_types": ["d", "b"]}}
    assert (result, doubts) == (VISION_LANGUAGE | changed, [])
    result, doubts = with_layers(VISION_LANGUAGE, [stacked(VISION_LANGUAGE, [3, 3], "visual.blocks")], names)
    changed = {"vision_config": {"depth": 2, "fullatt_block_indexes": [0, 1]}}
    assert (result, doubts) == (VISION_LANGUAGE | changed, [])


def test_a_stack_that_no_key_counts_is_said() -> None:
    """Nothing is guessed: the count stays, and a warning names the stack."""
    config = {"num_hidden_layers": 9}
    result, doubts = with_layers(config, [stacked(config, [0, 1])], ["model.layers"])
    assert result == config
    assert "no key says that model.layers has 4 layers" in doubts[0]


def test_a_side_list_does_not_take_the_towers_count() -> None:
    """Qwen3-VL's deepstack mergers may be as many as its blocks: depth is the blocks'."""
    config = {"vision_config": {"depth": 4}}
    names = ["model.visual.blocks", "model.visual.deepstack_merger_list"]
    result, _ = with_layers(config, [stacked(config, [0], names[1])], names)
    assert result == config
    assert with_layers(config, [stacked(config, [0], names[0])], names)[0] == {"vision_config": {"depth": 1}}


COUNTS = ("num_hidden_layers", "n_layer", "first_k_dense_replace", "num_nextn_predict_layers", "sliding_window_pattern")
LISTS = ("layer_types", "mlp_only_layers", "attention_types")
KEYS = st.sampled_from((*COUNTS, *LISTS, "vocab_size", "tie_word_embeddings", "text_config", "vision_config"))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 9) | st.text(max_size=4) | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=3),
)


@given(st.dictionaries(KEYS, VALUES, max_size=5), st.lists(st.integers(0, 3), max_size=6))
def test_any_configuration_is_mended_or_left(config: Config, layers: list[int]) -> None:
    """Whatever stands in config.json, nothing fails, the keys stay, and the argument is not touched."""
    before = json.dumps(config)
    result, _ = with_layers(config, [stacked(config, layers)], ["model.layers", "visual.blocks"])
    assert json.dumps(config) == before
    assert list(result) == list(config)
    assert list(with_head_of_its_own(with_vocab_size(result, 5), is_tied_by_default=False))[: len(config)] == list(
        config
    )
    assert all(isinstance(part, Mapping) for _, part in nested_configs(result))
