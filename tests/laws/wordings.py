"""A recipe that can be said in many ways, for tests that edit it at random.

    base, a ──► delta_a ──► thinned ──┐
    base, b ──► delta_b ──► reduced ──┴─► mixed ──► final
                   └──► scaled ─────────► side          (side is there when `has_side`)

A `Wording` says what the recipe means, a `Style` how it is written: names, order, comments. Two texts of one wording
mean the same whatever their styles.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import yaml
from hypothesis import strategies as st

ROLES = ("delta_a", "delta_b", "thinned", "reduced", "mixed", "final", "scaled", "side")
ALIASES = ("base", "a", "b")

# A value for every tensor, a gradient over the layers, or another value for some tensors.
Value = float | tuple[float, float] | tuple[str, float, float]

# The numbers of each method: the model's own, then those of the step.
MIXES: Mapping[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "ties": (("weight", "density"), ("lambda",)),
    "dare_ties": (("weight", "density"), ()),
    "della": (("weight", "density"), ("lambda",)),
    "breadcrumbs": (("weight", "density"), ()),
    "task_arithmetic": (("weight",), ("lambda",)),
    "sce": ((), ("select_topk",)),
    "model_stock": ((), ()),
}
FINALS = ("slerp", "linear", "nuslerp", "multislerp", "karcher", "passthrough")
SPARSIFIERS = ("magnitude", "random", "della", "magnitude_outliers")


@dataclass(frozen=True)
class Style:
    """How a recipe is written; nothing of it may change a value or a key."""

    names: Mapping[str, str] = field(default_factory=lambda: {role: role for role in ROLES})
    aliases: Mapping[str, str] = field(default_factory=lambda: {name: name for name in ALIASES})
    order: int = 0
    comments: bool = False
    flow: bool = False
    variables: bool = False


@dataclass(frozen=True)
class Wording:
    """What a recipe says."""

    numbers: Mapping[str, Value] = field(
        default_factory=lambda: {
            "weight_1": 0.6,
            "weight_2": 0.4,
            "density_1": 0.5,
            "density_2": 0.3,
            "thinned_density": 0.7,
            "lambda": 1.0,
            "select_topk": 0.5,
            "t": (0.2, 0.8),
            "factor": 0.5,
        }
    )
    mix: str = "ties"
    final: str = "slerp"
    sparsifier: str = "magnitude"
    rank: int = 2
    seed: int = 0
    dtypes: Mapping[str, str] = field(default_factory=dict)
    policies: Mapping[str, str] = field(default_factory=dict)
    uses_thinned: bool = True
    uses_reduced: bool = True
    has_side: bool = False
    outputs: tuple[str, ...] = ("final",)
    output_dtype: str = ""
    shard_size: str = "5GB"

    def written(self) -> tuple[str, ...]:
        """The steps that are outputs."""
        return tuple(role for role in self.outputs if role != "side" or self.has_side) or ("final",)

    def steps(self) -> dict[str, dict[str, object]]:
        """The body of each step, with roles for the names of steps and models' own names."""
        found: dict[str, dict[str, object]] = {
            "delta_a": {"task_vector": {"model": "a", "base": "base"}},
            "delta_b": {"task_vector": {"model": "b", "base": "base"}},
        }
        first, second = "delta_a", "delta_b"
        if self.uses_thinned:
            density = self.number("thinned_density")
            found["thinned"] = {"sparsify": {"delta": "delta_a", "method": self.sparsifier, "density": density}}
            first = "thinned"
        if self.uses_reduced:
            found["reduced"] = {"low_rank": {"delta": "delta_b", "rank": self.rank}}
            second = "reduced"
        own, shared = MIXES[self.mix]
        found["mixed"] = {
            "merge_method": self.mix,
            "base_model": "base",
            "models": [
                {"model": model, **({"parameters": {it: self.number(f"{it}_{k}") for it in own}} if own else {})}
                for k, model in ((1, first), (2, second))
            ],
            **({"parameters": {it: self.number(it) for it in shared}} if shared else {}),
        }
        found["final"] = self._final()
        if self.has_side:
            found["scaled"] = {"scale": {"delta": "delta_b", "factor": self.number("factor")}}
            side = {"model": "scaled", "parameters": {"weight": 1.0}}
            found["side"] = {"merge_method": "task_arithmetic", "base_model": "base", "models": [side]}
        for role, body in found.items():
            body |= {"dtype": self.dtypes[role]} if role in self.dtypes else {}
            body |= {"cache": self.policies[role]} if role in self.policies else {}
        return found

    def _final(self) -> dict[str, object]:
        t = self.number("t")
        if self.final == "slerp":
            models: list[object] = [{"model": "base"}, {"model": "mixed"}]
            return {"merge_method": "slerp", "base_model": "base", "models": models, "parameters": {"t": t}}
        if self.final == "passthrough":
            return {"merge_method": "passthrough", "models": [{"model": "mixed"}]}
        if self.final == "karcher":
            return {"merge_method": "karcher", "models": [{"model": "a"}, {"model": "mixed"}]}
        models = [{"model": "b", "parameters": {"weight": 0.5}}, {"model": "mixed", "parameters": {"weight": t}}]
        return {"merge_method": self.final, "models": models}

    def number(self, name: str) -> object:
        """A parameter as YAML says it."""
        value = self.numbers[name]
        if isinstance(value, tuple) and isinstance(value[0], str):
            return [{"filter": value[0], "value": value[1]}, {"value": value[2]}]
        return list(value) if isinstance(value, tuple) else value

    def text(self, style: Style, folder: str = ".") -> str:
        """The recipe in a style; its models lie below `folder`/models."""
        steps = {style.names[role]: _renamed(body, style) for role, body in self.steps().items()}
        how: dict[str, object] = {"max_shard_size": self.shard_size}
        how |= {"dtype": self.output_dtype} if self.output_dtype else {}
        document: dict[str, object] = {
            "mergeflow": 1,
            "seed": self.seed,
            "models": {alias: f"{folder}/models/{name}" for name, alias in style.aliases.items()},
            "steps": steps,
            "outputs": {style.names[role]: {"path": f"./out/{role}", **how} for role in self.written()},
        }
        if style.variables:
            seed = document.pop("seed")
            document |= {"vars": {"chance": seed, "unused": 3}, "seed": "${chance}"}
        shuffled = _shuffled(document, random.Random(style.order)) if style.order else document
        text = yaml.safe_dump(shuffled, sort_keys=False, default_flow_style=None if style.flow else False, width=1000)
        lines = [f"{line}   # {n}: ${{}}" if style.comments else line for n, line in enumerate(text.splitlines())]
        return "\n".join(lines) + "\n"

    def with_number(self, name: str, value: Value) -> Wording:
        return replace(self, numbers={**self.numbers, name: value})


def _renamed(value: object, style: Style) -> object:
    """A step's body with the style's names where models and steps are named."""
    known = {**style.names, **style.aliases}
    if isinstance(value, dict):
        named = ("model", "base", "base_model", "delta")
        return {
            key: known[entry] if key in named and isinstance(entry, str) else _renamed(entry, style)
            for key, entry in value.items()
        }
    return [_renamed(entry, style) for entry in value] if isinstance(value, list) else value


def _shuffled(value: object, order: random.Random) -> object:
    """Mappings in another order at every level; lists keep theirs, which has a meaning."""
    if isinstance(value, dict):
        keys = list(value)
        order.shuffle(keys)
        return {key: _shuffled(value[key], order) for key in keys}
    return [_shuffled(entry, order) for entry in value] if isinstance(value, list) else value


shares = st.sampled_from([0.3, 0.5, 0.7])
values: st.SearchStrategy[Value] = st.one_of(
    shares,
    st.tuples(shares, shares),
    st.tuples(st.sampled_from(["mlp", "layers.1.", "embed"]), shares, shares),
)
numbers = st.sampled_from(list(Wording().numbers))
words = st.text("abcdefgxyz", min_size=3, max_size=6)


@st.composite
def styles(draw: st.DrawFn) -> Style:
    """Any names, any order, with comments or without."""
    count = len(ROLES) + len(ALIASES)
    names = draw(st.lists(words, min_size=count, max_size=count, unique=True))
    return Style(
        names=dict(zip(ROLES, names[: len(ROLES)], strict=True)),
        aliases=dict(zip(ALIASES, names[len(ROLES) :], strict=True)),
        order=draw(st.integers(0, 9)),
        comments=draw(st.booleans()),
        flow=draw(st.booleans()),
        variables=draw(st.booleans()),
    )


@st.composite
def wordings(draw: st.DrawFn) -> Wording:
    """Any recipe of this shape."""
    return Wording(
        numbers={name: draw(values) for name in Wording().numbers},
        mix=draw(st.sampled_from(list(MIXES))),
        final=draw(st.sampled_from(FINALS)),
        sparsifier=draw(st.sampled_from(SPARSIFIERS)),
        rank=draw(st.integers(1, 3)),
        seed=draw(st.integers(0, 3)),
        dtypes=draw(st.dictionaries(st.sampled_from(["delta_a", "mixed", "final"]), st.just("bfloat16"))),
        uses_thinned=draw(st.booleans()),
        uses_reduced=draw(st.booleans()),
        has_side=draw(st.booleans()),
        outputs=draw(st.sampled_from([("final",), ("mixed", "final"), ("side", "final")])),
        output_dtype=draw(st.sampled_from(["", "float16"])),
        shard_size=draw(st.sampled_from(["5GB", "3KB"])),
    )
