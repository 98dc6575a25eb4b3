"""What PEFT makes of adapters that it saved is what a model with that adapter is here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from adapter_files import adapted, values
from safetensors.torch import load_file

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
BASES = {"gpt2": "gpt2", "gpt2_dora": "gpt2", "tied": "tied"}
CASES = sorted(folder.parent.name for folder in GOLDEN.glob("*/adapter"))


@pytest.mark.parametrize("case", CASES)
def test_a_model_with_an_adapter_is_what_peft_merges(case: str) -> None:
    """Every tensor that PEFT changed (in float64) is the same here within the rounding of float32, and no other changes."""
    base = GOLDEN / "bases" / BASES.get(case, "llama")
    before, after = adapted(base), adapted(base, GOLDEN / case / "adapter")
    expected = load_file(GOLDEN / case / "merged.safetensors")
    changed = {name for name, tensor in after.tensors.items() if tensor != before.tensors[name]}
    assert expected.keys() <= changed
    for name in changed:
        found = values(after.tensors[name]).astype(np.float32)
        if name in expected:
            np.testing.assert_allclose(found, expected[name].numpy(), rtol=2e-7, atol=1e-6, err_msg=name)
        else:
            np.testing.assert_array_equal(found, values(before.tensors[name]), err_msg=name)


def test_every_feature_of_peft_has_a_case() -> None:
    """The golden files are there: a missing folder must not make the test above pass."""
    assert len(CASES) == 13
