"""The tables of methods and operations: complete, in mergekit's words, and readable without torch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import yaml

from mergeflow.methods.kernels.protocols import pointwise_kernel, rowwise_kernel, statistic_kernel, whole_kernel
from mergeflow.methods.ops import OPS
from mergeflow.methods.schema import REQUIRED, Method
from mergeflow.methods.table import METHODS
from mergeflow.methods.views.protocols import view_kernel
from mergeflow.recipe.fields import OPERATIONS

# mergekit 0.1.5's parameters: name -> (kind, scope, default).
MERGEKIT = {
    "linear": {"weight": ("float", "input", REQUIRED), "normalize": ("bool", "shared", True)},
    "slerp": {"t": ("float", "shared", REQUIRED)},
    "nuslerp": {
        "weight": ("float", "non_base", REQUIRED),
        "nuslerp_flatten": ("bool", "shared", True),
        "nuslerp_row_wise": ("bool", "shared", False),
    },
    "multislerp": {
        "weight": ("float", "non_base", REQUIRED),
        "normalize_weights": ("bool", "shared", True),
        "eps": ("float", "shared", 1e-8),
    },
    "karcher": {"max_iter": ("int", "shared", 10), "tol": ("float", "shared", 1e-5)},
    "model_stock": {"filter_wise": ("bool", "shared", False)},
    "ram": {"epsilon": ("float", "shared", 1e-5)},
    "ramplus_tl": {
        "r": ("float", "shared", 0.1),
        "alpha": ("float", "shared", 0.2),
        "epsilon": ("float", "shared", 1e-5),
    },
    "nearswap": {"t": ("float", "shared", REQUIRED)},
    "arcee_fusion": {},
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
    "sce": {"select_topk": ("float", "shared", 1.0), "int8_mask": ("bool", "shared", False)},
}
for _name, _normalize, _rescale, _own in (
    ("dare_linear", False, True, {}),
    ("dare_ties", False, True, {}),
    ("breadcrumbs", False, False, {"gamma": ("float", "non_base", 0.01)}),
    ("breadcrumbs_ties", False, False, {"gamma": ("float", "non_base", 0.01)}),
    ("della", True, True, {"epsilon": ("float", "non_base", 0.15)}),
    ("della_linear", False, True, {"epsilon": ("float", "non_base", 0.15)}),
):
    MERGEKIT[_name] = {
        **MERGEKIT["ties"],
        **_own,
        "normalize": ("bool", "shared", _normalize),
        "rescale": ("bool", "shared", _rescale),
    }
# Options that mergekit lacks, where papers and tools disagree; the default is what mergekit does.
ELECTION = {"election": ("string", "shared", "weighted")}
RESCALE_BY = {"rescale_by": ("string", "shared", "l1")}
OPTIONS = {
    "ties": ELECTION,
    "breadcrumbs_ties": ELECTION,
    "dare_linear": RESCALE_BY,
    "dare_ties": {**RESCALE_BY, **ELECTION},
    "della_linear": RESCALE_BY,
    "della": {**RESCALE_BY, **ELECTION},
}
# What mergekit lacks: methods of other tools and papers, and steps that shape a delta by themselves.
OURS = {
    "arithmetic",
    "geometric_median",
    "consensus_ta",
    "consensus_ties",
    "magmax",
    "emr",
    "add_difference",
    "perpendicular",
    *OPERATIONS,
}


@pytest.mark.parametrize("name", MERGEKIT)
def test_parameters_are_mergekits(name: str) -> None:
    """Each method has mergekit's parameters, with its types, scopes and defaults, and no others but our options."""
    declared = {
        parameter.name: (parameter.kind, parameter.scope, parameter.default) for parameter in METHODS[name].parameters
    }
    assert declared == {**MERGEKIT[name], **OPTIONS.get(name, {})}


def test_every_other_method_is_ours() -> None:
    """The methods are mergekit's and those it lacks, and no others."""
    assert METHODS.keys() == MERGEKIT.keys() | OURS


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
    if method.name in OPERATIONS:
        assert example.keys() == {method.name}
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
        statistic = statistic_kernel(op)(10, {"k": 3, "epsilon": 0.1, "share": 0.5, "columns": 5})
        assert callable(statistic.update)
    else:
        kernels = {
            "pointwise": pointwise_kernel,
            "rowwise": rowwise_kernel,
            "whole": whole_kernel,
            "view": view_kernel,
        }
        assert callable(kernels[op.kind](op))


def test_the_tables_need_no_torch() -> None:
    """Reading every method and operation imports neither torch nor numpy: `validate` starts at once."""
    program = (
        "import sys, mergeflow.methods.table, mergeflow.methods.ops, mergeflow.methods.kernels.protocols\n"
        "sys.exit(bool({'torch', 'numpy'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
