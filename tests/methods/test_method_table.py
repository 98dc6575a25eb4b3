"""The tables of methods and operations: complete, in mergekit's words, and readable without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from mergeflow.methods.kernels.protocols import pointwise_kernel, statistic_kernel
from mergeflow.methods.ops import OPS
from mergeflow.methods.schema import REQUIRED, Method
from mergeflow.methods.table import METHODS

# mergekit 0.1.5's parameters: name -> (kind, scope, default).
MERGEKIT = {
    "linear": {"weight": ("float", "input", REQUIRED), "normalize": ("bool", "shared", True)},
    "slerp": {"t": ("float", "shared", REQUIRED)},
    "passthrough": {"scale": ("float", "input", None)},
    "task_arithmetic": {
        "weight": ("float", "non_base", REQUIRED),
        "density": ("float", "non_base", 1.0),
        "normalize": ("bool", "shared", False),
        "rescale": ("bool", "shared", False),
        "int8_mask": ("bool", "shared", False),
        "lambda": ("float", "shared", 1.0),
    },
    "ties": {
        "weight": ("float", "non_base", REQUIRED),
        "density": ("float", "non_base", 1.0),
        "normalize": ("bool", "shared", True),
        "rescale": ("bool", "shared", False),
        "int8_mask": ("bool", "shared", False),
        "lambda": ("float", "shared", 1.0),
    },
    "task_vector": {},
}


@pytest.mark.parametrize("name", MERGEKIT)
def test_parameters_are_mergekits(name: str) -> None:
    """Each method has mergekit's parameters, with its types, scopes and defaults, and no others."""
    declared = {
        parameter.name: (parameter.kind, parameter.scope, parameter.default) for parameter in METHODS[name].parameters
    }
    assert declared == MERGEKIT[name]
    assert METHODS.keys() == MERGEKIT.keys()


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_a_method_says_what_it_is(method: Method) -> None:
    """Each method has a title, a summary, a formula, and a meaning for each of its parameters."""
    assert all((method.title, method.summary, method.formula))
    assert all(parameter.meaning for parameter in method.parameters)
    assert method.parameter("nonsense") is None


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
def test_an_example_is_a_recipe_of_the_method(method: Method) -> None:
    """Each example is YAML that uses the method, with all its required parameters."""
    example = yaml.safe_load(method.example)
    if method.name == "task_vector":
        assert example.keys() == {"task_vector"}
        return
    assert example["merge_method"] == method.name
    assert ("base_model" in example) == (method.base == "required")
    for parameter in method.parameters:
        if parameter.default is REQUIRED:
            assert parameter.name in method.example


def test_density_is_a_share() -> None:
    """A density of TIES below 0 or above 1 is out of bounds."""
    density = METHODS["ties"].parameter("density")
    assert density is not None
    assert (density.minimum, density.maximum) == (0.0, 1.0)


@pytest.mark.parametrize("name", OPS)
def test_every_kernel_loads(name: str) -> None:
    """The kernel that an operation names exists, and is of the operation's kind."""
    op = OPS[name]
    assert op.name == name
    assert op.formula
    assert "\n" not in op.formula
    if op.kind == "statistic":
        statistic = statistic_kernel(op)(10, {"k": 3})
        assert callable(statistic.update)
    else:
        assert callable(pointwise_kernel(op))


def test_the_tables_need_no_torch() -> None:
    """Reading every method and operation imports neither torch nor numpy: `validate` starts at once."""
    program = (
        "import sys, mergeflow.methods.table, mergeflow.methods.ops, mergeflow.methods.kernels.protocols\n"
        "sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
