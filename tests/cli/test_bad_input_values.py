"""Every way in which a value can be wrong: out of range, of the wrong type, weights for a delta, too many models.

All are found from headers, and said together; see `test_bad_input.py` for what each test does.
"""

from __future__ import annotations

import pytest
from recipes import LINEAR, TIES
from refusals import refused

pytestmark = pytest.mark.usefixtures("workplace", "out")


class TestValues:
    """Parameters that are not what they must be. All are said at once, before a model is even there."""

    @pytest.mark.parametrize(
        ("value", "reason"),
        [
            ("1.5", "density must be between 0 and 1, not 1.5"),
            ("-0.1", "density must be between 0 and 1, not -0.1"),
            (".nan", "density must be a finite number, not nan"),
            (".inf", "density must be a finite number, not inf"),
            ("half", "'half' is not a number"),
            ("[0.5, 1.5]", "density must be between 0 and 1, not 1.5"),
            ("[0.5, half]", "'half' is not a number"),
            ("[]", "an empty list gives no value"),
        ],
    )
    def test_a_density(self, value: str, reason: str) -> None:
        """Out of range, no number, or a gradient with one such value: one message, however many tensors there are."""
        refused(
            TIES.replace("weight: 0.6, density: 0.5", f"weight: 0.6, density: ▶{value}"),
            f"steps.final.models[0].parameters.density: {reason}",
        )

    def test_a_condition_for_some_tensors_only(self) -> None:
        """A wrong value behind a filter is wrong even if no tensor has the name."""
        refused(
            TIES
            + "    parameters: {density: [{filter: mlp, value: ▶2}, {filter: nothing, value: ▶3}, {value: 0.5}]}\n",
            "steps.final.parameters.density: density must be between 0 and 1, not 2",
            "steps.final.parameters.density: density must be between 0 and 1, not 3",
        )

    @pytest.mark.parametrize("value", ["perhaps", "2", "1.5"])
    def test_a_switch(self, value: str) -> None:
        """True, false, or a word for them."""
        quoted = f"'{value}'" if value.isalpha() else value
        refused(
            LINEAR + f"    parameters: {{normalize: ▶{value}}}\n",
            f"steps.soup.parameters.normalize: {quoted} is not true or false",
        )

    @pytest.mark.parametrize(
        ("value", "message"),
        [
            ("▶{a: 1}", "a condition needs a 'value': a parameter is a value, a list of values (a gradient), or …"),
            ("[▶[1, 2]]", "a list inside a list: …"),
            ("▶~", "no value: …"),
        ],
    )
    def test_no_value_at_all(self, value: str, message: str) -> None:
        """What is no value is said once: not, too, that the parameter is missing."""
        index = "[0]" if "[" in value else ""
        refused(
            LINEAR.replace("weight: 3", f"weight: {value}"),
            f"steps.soup.models[1].parameters.weight{index}: {message}",
        )

    def test_weights_that_sum_to_zero(self) -> None:
        """Normalized weights need a sum to divide by; said once, not for each tensor."""
        refused(
            LINEAR.replace("weight: 3", "weight: -1").replace("soup:", "▶soup:"),
            "steps.soup.parameters: the weights (1, -1) sum to zero, so they cannot be normalized; "
            "set normalize: false",
        )

    def test_weights_that_sum_to_zero_somewhere(self) -> None:
        """A gradient that crosses zero in one layer: the tensors it hits are named."""
        refused(
            LINEAR.replace("weight: 3", "weight: [3, -1]").replace("  soup:", "  ▶soup:"),
            "steps.soup.parameters: the weights (1, -1) sum to zero, so they cannot be normalized; "
            "set normalize: false (tensor model.layers.1.input_layernorm.weight and … more)",
        )

    def test_a_filter_that_leaves_tensors_without_a_value(self) -> None:
        """A parameter without a default needs a value for every tensor."""
        refused(
            LINEAR.replace("weight: 3", "weight: ▶{filter: mlp, value: 3}"),
            "steps.soup.models[1].parameters.weight: linear needs 'weight' for every tensor: add a value without "
            "a filter (tensor lm_head.weight and 6 more)",
        )

    @pytest.mark.parametrize(
        ("field", "message"),
        [
            ("max_shard_size: ▶5XB", "max_shard_size: '5XB' is not a size: …"),
            ("max_shard_size: ▶-1", "max_shard_size: '-1' is not a size: …"),
            ("tokenizer: ▶c", "tokenizer: expected a mapping: write {source: c}"),
        ],
    )
    def test_a_field_of_an_output(self, field: str, message: str) -> None:
        """Outputs are read as strictly as steps."""
        refused(LINEAR + f"outputs: {{soup: {{{field}}}}}\n", f"outputs.soup.{message}")

    def test_a_cache_policy(self) -> None:
        """One of three words."""
        refused(
            LINEAR + "    cache: ▶alway\n",
            "steps.soup.cache: 'alway' is not one of auto, always, never; did you mean 'always'?",
        )

    def test_a_seed(self) -> None:
        """An integer from zero."""
        refused(LINEAR + "seed: ▶-1\n", "seed: a seed is an integer from 0 to 2**64 - 1")


class TestWeightsAndDeltas:
    """What a method takes, and what a step gives."""

    STEPS = """
mergeflow: 1
models: {a: ./a, b: ./b}
steps:
  skill:
    task_vector: {model: b, base: a}
"""

    def test_a_delta_where_weights_are_needed(self) -> None:
        """The difference of a difference is none."""
        refused(
            self.STEPS + "  final:\n    task_vector: {model: ▶skill, base: a}\n",
            "steps.final.task_vector.model: skill is a delta; task_vector takes weights",
        )

    def test_a_delta_for_a_base(self) -> None:
        """A base is what deltas are added to."""
        refused(
            self.STEPS
            + """\
  final:
    merge_method: task_arithmetic
    base_model: ▶skill
    models: [{model: b, parameters: {weight: 1}}]
""",
            "steps.final.base_model: skill is a delta; the base of task_arithmetic must be weights",
        )

    def test_weights_where_a_delta_is_needed(self) -> None:
        """A mix of the two has no meaning; both are named."""
        refused(
            self.STEPS
            + """\
  final:
    merge_method: linear
    models:
      - {model: ▶skill, parameters: {weight: 1}}
      - {model: b, parameters: {weight: 1}}
""",
            "steps.final.models[0].model: linear cannot mix weights and deltas: skill is a delta, ./b is weights",
        )

    def test_a_delta_for_an_output(self) -> None:
        """A task vector is not a model, and nobody loads it."""
        refused(
            self.STEPS + "outputs:\n  ▶skill: ./elsewhere\n",
            "outputs.skill: skill is a delta, not a model: add it to a base (task_arithmetic does) to write it",
        )

    def test_a_delta_is_found_behind_a_step_that_is_wrong_itself(self) -> None:
        """Types do not depend on the values of parameters: both mistakes are said at once."""
        refused(
            self.STEPS
            + """\
  more:
    merge_method: linear
    models: [{model: skill, parameters: {weight: ▶heavy}}]
outputs:
  ▶more: ./elsewhere
""",
            "steps.more.models[0].parameters.weight: 'heavy' is not a number",
            "outputs.more: more is a delta, not a model: add it to a base (task_arithmetic does) to write it",
        )

    @pytest.mark.parametrize(
        ("listed", "message"),
        [
            ("[{model: b}, {model: c}]", "slerp takes at most 1 model besides its base, not 2"),
            ("[{model: a}]", "slerp needs at least 1 model besides its base, not 0"),
        ],
    )
    def test_too_many_or_too_few_models(self, listed: str, message: str) -> None:
        """A method that takes two models gets two."""
        text = f"""
mergeflow: 1
models: {{a: ./a, b: ./b, c: ./c}}
steps:
  final:
    merge_method: slerp
    base_model: a
    models: ▶{listed}
    parameters: {{t: 0.5}}
"""
        refused(text, f"steps.final.models: {message}")

    def test_no_base(self) -> None:
        """A method of task vectors without what they are differences from."""
        refused(
            TIES.replace("    base_model: a\n", "").replace("ties", "▶ties"),
            "steps.final.merge_method: ties needs a base_model",
        )

    def test_a_model_twice(self) -> None:
        """Two weights for one model are a mistake of copying."""
        refused(
            LINEAR.replace("model: b", "model: ▶a"),
            "steps.soup.models[1].model: ./a is listed twice; list each model once",
        )
