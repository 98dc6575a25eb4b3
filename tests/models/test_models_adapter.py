"""A model with adapters: which tensors change, by how much, and what is refused."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from adapter_files import adapted, delta, values, write_adapter, write_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mergeflow.errors import CheckpointError
from mergeflow.models.adapter_config import read_adapter_config
from mergeflow.models.adapter_names import BaseNames
from mergeflow.models.records import TensorSource

Q = "model.layers.0.self_attn.q_proj"
DOWN = "model.layers.0.mlp.down_proj"
EMBED = "model.embed_tokens"


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def base(folder: Path, dtype: torch.dtype = torch.float32, **config: object) -> Path:
    """One layer of a tied model, width 6."""
    tensors = {f"{Q}.weight": numbers(6, 6), f"{DOWN}.weight": numbers(6, 8), f"{EMBED}.weight": numbers(10, 6)}
    tensors |= {f"{Q}.bias": numbers(6), "model.norm.weight": numbers(6)}
    return write_model(folder, {name: tensor.to(dtype) for name, tensor in tensors.items()}, **config)


def lora(module: str, outputs: int, inputs: int, rank: int = 2, seed: int = 1) -> dict[str, torch.Tensor]:
    return {
        f"{module}.lora_A.weight": numbers(rank, inputs, seed=seed),
        f"{module}.lora_B.weight": numbers(outputs, rank, seed=seed + 1),
    }


def dense(pair: dict[str, torch.Tensor], scale: float = 2.0) -> np.ndarray:
    a, b = (tensor.double() for tensor in pair.values())
    return (scale * (b @ a)).numpy()


def test_only_what_it_names_changes(tmp_path: Path) -> None:
    """An adapter's module is a view in the base's own format; all other tensors lie in the base's file."""
    model, pair = base(tmp_path / "b", torch.bfloat16), lora(DOWN, 6, 8)
    before, after = adapted(model), adapted(model, write_adapter(tmp_path / "a", pair))
    changed = [name for name in after.tensors if after.tensors[name] != before.tensors[name]]
    assert changed == [f"{DOWN}.weight"]
    assert after.tensors[changed[0]].stored.name == "bfloat16"
    expected = values(before.tensors[changed[0]]) + dense(pair)
    np.testing.assert_allclose(values(after.tensors[changed[0]]), expected, rtol=1e-6)


def test_several_adapters_have_weights_and_no_order(tmp_path: Path) -> None:
    """W + sum of weight times what each adds, DoRA and whole tensors too, whichever comes first."""
    model, first = base(tmp_path / "b"), lora(Q, 6, 6)
    second = lora(Q, 6, 6, seed=5) | {f"{Q}.lora_magnitude_vector": numbers(6, seed=9).abs()}
    one, two = write_adapter(tmp_path / "1", first), write_adapter(tmp_path / "2", second)
    whole = write_adapter(tmp_path / "3", {**lora(DOWN, 6, 8), "model.norm.weight": numbers(6, seed=7)})
    w = values(adapted(model).tensors[f"{Q}.weight"])
    dora = values(adapted(model, two).tensors[f"{Q}.weight"])
    expected = w + 0.5 * dense(first) - 0.25 * (dora - w)
    for order in ([(one, 0.5), (two, -0.25), whole], [whole, (two, -0.25), (one, 0.5)]):
        found = adapted(model, *order)
        np.testing.assert_allclose(values(found.tensors[f"{Q}.weight"]), expected, rtol=1e-5, atol=1e-6)
    halved = adapted(model, (whole, 0.5)).tensors["model.norm.weight"]
    np.testing.assert_allclose(values(halved), (numbers(6).numpy() + numbers(6, seed=7).numpy()) / 2, rtol=1e-6)


def test_rank_and_alpha_of_a_module(tmp_path: Path) -> None:
    """A key of rank_pattern or alpha_pattern counts for the modules whose names end with it, the first one first."""
    config = read_adapter_config(
        {
            "peft_type": "LORA",
            "r": 8,
            "lora_alpha": 16,
            "rank_pattern": {r"layers\.[01]\..*q_proj": 2, "q_proj": 4, "^model.layers.5.mlp": 3},
            "alpha_pattern": {"layers.0.self_attn.q_proj": 1},
        },
        "here",
    )
    assert config.rank_of("model.layers.1.self_attn.q_proj") == 2
    assert config.rank_of("model.layers.2.self_attn.q_proj") == 4
    assert config.rank_of("model.layers.5.mlp") == 3
    assert config.rank_of("x.model.layers.5.mlp") == 8
    assert config.rank_of("model.layers.5.my_q_proj") == 8
    assert config.scale_of("model.layers.0.self_attn.q_proj") == 0.5
    assert config.scale_of("model.norm") == 2


def test_an_adapter_alone_is_what_it_adds(tmp_path: Path) -> None:
    """Its tensors have the names and shapes of the base's; DoRA and whole tensors need the base."""
    pair = lora(DOWN, 6, 8)
    alone = delta(write_adapter(tmp_path / "a", pair), 0.5)
    assert list(alone.tensors) == [f"{DOWN}.weight"]
    np.testing.assert_allclose(values(alone.tensors[f"{DOWN}.weight"]), dense(pair, 1.0), rtol=1e-6)
    with pytest.raises(CheckpointError, match="depends on its base"):
        delta(write_adapter(tmp_path / "c", {**pair, "lm_head.weight": numbers(10, 6)}))


def test_square_matrices_are_turned_when_the_others_are(tmp_path: Path) -> None:
    """In a model of Conv1D a square matrix takes the product turned, whatever fan_in_fan_out says."""
    names = {"h.0.attn.c_proj.weight": numbers(6, 6), "h.0.attn.c_attn.weight": numbers(6, 18)}
    model = write_model(tmp_path / "b", names)
    square = lora("transformer.h.0.attn.c_proj", 6, 6)
    adapter = write_adapter(tmp_path / "a", {**square, **lora("transformer.h.0.attn.c_attn", 18, 6)})
    found = values(adapted(model, adapter).tensors["h.0.attn.c_proj.weight"])
    np.testing.assert_allclose(found, numbers(6, 6).numpy() + dense(square).T, rtol=1e-5, atol=1e-6)


def test_a_head_that_is_tied_becomes_one_of_its_own(tmp_path: Path) -> None:
    """An adapter on lm_head leaves the embeddings as they are, and the configuration says that they are not tied."""
    model, pair = base(tmp_path / "b", tie_word_embeddings=True), lora("lm_head", 10, 6)
    found = adapted(model, write_adapter(tmp_path / "a", pair))
    embedding = found.tensors[f"{EMBED}.weight"]
    assert isinstance(embedding, TensorSource)
    np.testing.assert_allclose(values(found.tensors["lm_head.weight"]), values(embedding) + dense(pair), rtol=1e-6)
    assert found.config["tie_word_embeddings"] is False


def test_a_vocabulary_that_has_grown(tmp_path: Path) -> None:
    """Embeddings saved with the adapter stand in place of the base's, with their own number of rows."""
    model = base(tmp_path / "b", vocab_size=10)
    whole = {f"{EMBED}.weight": numbers(12, 6, seed=4).bfloat16()}
    adapter = write_adapter(tmp_path / "a", {**lora(Q, 6, 6), **whole}, modules_to_save=["embed_tokens"])
    found = adapted(model, adapter)
    assert found.tensors[f"{EMBED}.weight"].shape == (12, 6)
    assert found.tensors[f"{EMBED}.weight"].stored.name == "float32"
    assert found.config["vocab_size"] == 12
    with pytest.raises(CheckpointError, match="must be the only one"):
        adapted(model, (adapter, 0.5))


def test_experts_are_packed_with_their_adapters(tmp_path: Path) -> None:
    """An adapter on one expert's matrix changes that part of the packed tensor."""
    mlp = "model.layers.0.mlp.experts"
    shapes = {"gate_proj": (3, 4), "up_proj": (3, 4), "down_proj": (4, 3)}
    model = write_model(
        tmp_path / "b", {f"{mlp}.{e}.{part}.weight": numbers(*shape) for e in (0, 1) for part, shape in shapes.items()}
    )
    pair = lora(f"{mlp}.1.down_proj", 4, 3)
    before, after = adapted(model), adapted(model, write_adapter(tmp_path / "a", pair))
    assert before.tensors.keys() == after.tensors.keys() == {f"{mlp}.gate_up_proj", f"{mlp}.down_proj"}
    difference = values(after.tensors[f"{mlp}.down_proj"]) - values(before.tensors[f"{mlp}.down_proj"])
    np.testing.assert_allclose(difference[1], dense(pair), rtol=1e-4, atol=1e-6)
    assert not difference[0].any()


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("model.layers.3.mlp.up_proj.weight", "model.layers.3.mlp.up_proj.weight"),
        ("model.layers.3.self_attn.q_proj.weight", "model.language_model.layers.3.self_attn.q_proj.weight"),
        ("transformer.h.0.attn.c_attn.weight", "h.0.attn.c_attn.weight"),
        ("layers.0.x.weight", "encoder.layers.0.x.weight"),
        ("model.layers.0.mlp.gate.weight", "model.layers.0.block_sparse_moe.gate.weight"),
    ],
)
def test_one_model_has_several_prefixes(here: str, there: str) -> None:
    """A name is found under the base's prefix, and only where one tensor can be meant."""
    assert BaseNames([there, "other.weight"]).find(here) == there
    assert BaseNames(["a.layers.0.x.weight", "b.layers.0.x.weight"]).find("layers.0.x.weight") is None
    assert BaseNames(["model.layers.1.x.weight"]).find("model.layers.0.x.weight") is None


REFUSED = {
    "matches nothing": ({}, lora("model.layers.7.self_attn.q_proj", 6, 6), "which .* has not"),
    "another shape": ({}, lora(DOWN, 6, 9), r"of shape \[6, 9\]; in .* it has \[6, 8\]"),
    "another rank": ({}, lora(Q, 6, 6, rank=3), "of rank 3, but the adapter's configuration says 2"),
    "half a product": ({}, {f"{Q}.lora_A.weight": numbers(2, 6)}, "both matrices"),
    "no product": ({}, {**lora(Q, 6, 6), f"{Q}.lora_B.weight": numbers(6, 5)}, "make no product"),
    "integers": ({}, {**lora(Q, 6, 6), "x": torch.ones(2, dtype=torch.int64)}, "is int64"),
    "an unknown part": ({}, {f"{Q}.lora_Z.weight": numbers(2, 6)}, "not read"),
    "a tensor of nobody": ({}, {"score.weight": numbers(2, 6)}, "has not"),
    "no kind": ({"peft_type": None}, lora(Q, 6, 6), "no peft_type"),
    "another kind": ({"peft_type": "IA3"}, lora(Q, 6, 6), "only LORA"),
    "no rank": ({"r": 0}, lora(Q, 6, 6), "r must be a whole number"),
    "no alpha": ({"lora_alpha": "x"}, lora(Q, 6, 6), "lora_alpha must be a finite number"),
    "repeated layers": ({"layer_replication": [[0, 2]]}, lora(Q, 6, 6), "repeats layers"),
    "a changed base": ({"init_lora_weights": "pissa_niter_4"}, lora(Q, 6, 6), "took a part out of the base"),
    "a feature to come": ({"use_newlora": True}, lora(Q, 6, 6), "does not know"),
    "a pattern": ({"rank_pattern": {"(a(?=b))": 3}}, lora(Q, 6, 6), "cannot be read"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path: Path, case: str) -> None:
    """One sentence says what is wrong with an adapter, before a number is read."""
    config, tensors, message = REFUSED[case]
    with pytest.raises(CheckpointError, match=message):
        adapted(base(tmp_path / "b"), write_adapter(tmp_path / "a", tensors, **config))


def test_a_module_of_its_own_comes_with_the_adapter(tmp_path: Path) -> None:
    """A classifier's head that the base has not is a tensor of the result, when modules_to_save names it."""
    tensors = {**lora(Q, 6, 6), "score.weight": numbers(2, 6)}
    found = adapted(base(tmp_path / "b"), write_adapter(tmp_path / "a", tensors, modules_to_save=["score"]))
    np.testing.assert_array_equal(values(found.tensors["score.weight"]), tensors["score.weight"].numpy())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abq.*(+)[{^", max_size=6), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "fan_in_fan_out", "bias"]
FIELDS += ["modules_to_save", "init_lora_weights", "layer_replication", "target_modules", "use_dora"]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=3), cut=st.integers(0, 400))
def test_a_mutated_configuration_gives_our_own_errors(tmp_path: Path, changes: dict[str, object], cut: int) -> None:
    """Whatever stands in adapter_config.json, cut off or not, it opens or is refused with a CheckpointError."""
    model, adapter = base(tmp_path / "b"), write_adapter(tmp_path / "a", lora(Q, 6, 6))
    text = json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4, **changes})
    (adapter / "adapter_config.json").write_text(text[:cut] if cut < 200 else text)
    with suppress(CheckpointError):
        adapted(model, adapter)
