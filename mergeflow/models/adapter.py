"""A model with adapters on it, without ever writing it: tensors of the base, read with what the adapters add to them.

    W + sum_i w_i * D_i          D_i = scale_i * B_i A_i, what adapter i makes of the base less the base, w_i its weight

One adapter at weight 1 gives what PEFT's `merge_and_unload` gives, but for rounding: here it is computed in float64 and
rounded once. With several, each is added to the base, not to what those before it made of it, so their order does not
count. A tensor that the adapter has as a whole (`modules_to_save`, biases) stands in place of the base's.

**Orientation.** A Linear's weight is (out, in); GPT-2's Conv1D and embeddings keep (in, out), and take the product
turned. The shapes say which it is; where the matrix is square, the other matrices of the adapter say it (all of one
model are of one kind), and where all are square its `fan_in_fan_out`.

**Tied embeddings.** Where the base has no head of its own and the adapter changes the head, the head becomes a tensor
of its own, made from the embeddings, and `tie_word_embeddings` false. An adapter on the embeddings alone leaves them
tied: as after PEFT's merge, the head follows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from mergeflow.dtypes import FLOAT32, FLOAT64, DType
from mergeflow.errors import CheckpointError, some
from mergeflow.models.adapter_names import BaseNames
from mergeflow.models.adapter_tensors import Adapter, LowRank, Tensor
from mergeflow.models.config_vocabulary import says_untied, vocab_size, with_head_of_its_own, with_vocab_size
from mergeflow.models.names import in_natural_order
from mergeflow.models.records import Checkpoint, TensorView
from mergeflow.models.vocabulary import is_embedding, is_head

# Beyond this, nothing but infinities would come of it.
MAX_WEIGHT = 1e30


@dataclass(slots=True)
class _Change:
    """What one adapter does to one tensor. `own` stands in place of the base's, before the rest is added."""

    own: Tensor | None = None
    product: LowRank | None = None
    form: str = ""
    bias: LowRank | None = None


@dataclass(slots=True)
class _Target:
    """A tensor of the result: what the base has for it (None: nothing), and the change of each adapter by its index."""

    base: Tensor | None
    changes: dict[int, _Change] = field(default_factory=dict)


def with_adapters(base: Checkpoint, adapters: Sequence[Adapter]) -> Checkpoint:
    """`base` with adapters added to it.

    Raises:
        CheckpointError: an adapter does not fit: it names tensors that the base has not, or of other shapes.
    """
    for adapter in adapters:
        if not abs(adapter.weight) <= MAX_WEIGHT:
            raise CheckpointError(f"{adapter.label}: {adapter.weight!r} is no weight for an adapter")
    targets: dict[str, _Target] = {}
    names = BaseNames(base.tensors)
    heads: set[str] = set()
    for index, adapter in enumerate(adapters):
        _Fitting(base, names, adapter, index, targets, heads).fit()
    made = {name: _made(name, target, adapters) for name, target in targets.items()}
    tensors: dict[str, Tensor] = {**base.tensors, **made}
    ordered = {name: tensors[name] for name in in_natural_order(tensors)}
    return replace(base, tensors=ordered, config=_config(base, made, has_new_head=bool(heads)))


def delta_alone(adapter: Adapter, label: str) -> Checkpoint:
    """What an adapter adds to a base, as a model of its own: only the tensors it changes, named as it names them.

    Raises:
        CheckpointError: a part of it is no sum, and can only be said of a base.
    """
    turned = [part for part in adapter.low_rank.values() if part.magnitude is not None]
    if turned or adapter.trained:
        what = turned[0].module if turned else next(iter(adapter.trained))
        why = "DoRA scales the base's rows" if turned else "it was trained as a whole"
        raise CheckpointError(
            f"{label}: what it changes in {what!r:.120} depends on its base ({why}); name it: "
            "task_vector: {adapter: ..., base: ...}"
        )
    tensors: dict[str, Tensor] = {}
    for module, part in adapter.low_rank.items():
        is_turned = part.is_embedding or (adapter.config.transposed and len(part.shape) == 2)
        name, shape = f"{module}.weight", part.shape[::-1] if is_turned else part.shape
        term = ("transposed" if is_turned else "product", part.scale * adapter.weight)
        tensors[name] = _sum(name, shape, None, [(term, (part.a, part.b))], part.a.stored)
        if part.bias is not None:
            term = ("plain", part.scale * adapter.weight)
            name = f"{module}.bias"
            tensors[name] = _sum(name, part.bias.shape, None, [(term, (part.bias,))], part.bias.stored)
    return Checkpoint(label, None, {name: tensors[name] for name in in_natural_order(tensors)})


class _Fitting:
    """Finds, for every part of one adapter, the tensor of the base that it changes."""

    def __init__(
        self,
        base: Checkpoint,
        names: BaseNames,
        adapter: Adapter,
        index: int,
        targets: dict[str, _Target],
        heads: set[str],
    ) -> None:
        self._base = base
        self._names = names
        self._adapter = adapter
        self._index = index
        self._targets = targets
        self._heads = heads
        self._strange: list[str] = []

    def fit(self) -> None:
        for name, tensor in self._adapter.trained.items():
            change = self._change(name, tensor.shape)
            if change is not None:
                change.own = tensor
        for module, part in self._adapter.low_rank.items():
            change = self._change(f"{module}.weight", part.shape[::-1] if part.is_embedding else part.shape)
            if change is not None:
                change.product = part
            if part.bias is not None:
                change = self._change(f"{module}.bias", part.bias.shape)
                if change is not None:
                    change.bias = part
        self._check_all_found()
        self._orient()

    def _change(self, name: str, shape: tuple[int, ...]) -> _Change | None:
        """The change of the tensor that the adapter calls `name`; None, noted, when the base has none."""
        found = self._names.find(name)
        source = self._base.tensors[found] if found is not None else None
        if found is None and name not in self._targets:
            source = self._tied(name, shape)
            if source is not None:
                self._heads.add(name)
            elif not self._may_bring(name):
                self._strange.append(name)
                return None
        target = self._targets.setdefault(found or name, _Target(source))
        return target.changes.setdefault(self._index, _Change())

    def _may_bring(self, name: str) -> bool:
        """Whether a tensor that the base has not is a module of the adapter's own: the head of a classifier."""
        is_own = any(f".{module}." in f".{name}" for module in self._adapter.config.trained_whole)
        return is_own and name in self._adapter.trained

    def _tied(self, name: str, shape: tuple[int, ...]) -> Tensor | None:
        """The embeddings of a base whose head they are too."""
        if not is_head(name) or says_untied(self._base.config):
            return None
        candidates = [
            tensor
            for other, tensor in self._base.tensors.items()
            if is_embedding(other) and tensor.shape[1:] == shape[1:]
        ]
        return candidates[0] if len(candidates) == 1 else None

    def _check_all_found(self) -> None:
        if not self._strange:
            return
        trained_on = f"; it was trained on {self._adapter.config.base!r:.120}" if self._adapter.config.base else ""
        raise CheckpointError(
            f"{self._adapter.label}: the adapter changes {some(self._strange)}, which "
            f"{self._base.label} has not{trained_on}"
        )

    def _orient(self) -> None:
        """Set each product's form from the shapes; square ones follow the others."""
        undecided: list[_Change] = []
        forms: set[str] = set()
        for name, target in self._targets.items():
            change = target.changes.get(self._index)
            if change is None:
                continue
            before = change.own if change.own is not None else target.base
            self._check_own(name, target, change)
            if change.product is None:
                continue
            assert before is not None  # a product's name was found in the base, or has a tensor of its own
            if not before.dtype.is_float:
                message = f"{name} of {self._base.label} is {before.dtype}: nothing can be added to it"
                raise CheckpointError(f"{self._adapter.label}: {message}")
            fits = _forms(change.product, before.shape)
            if not fits:
                raise self._misfit(name, change.product, before)
            change.form = fits[0]
            if len(fits) > 1:
                undecided.append(change)
            elif not change.product.is_embedding and len(before.shape) == 2:
                forms.update(fits)
        default = "transposed" if self._adapter.config.transposed else "product"
        for change in undecided:
            change.form = next(iter(forms)) if len(forms) == 1 else default

    def _check_own(self, name: str, target: _Target, change: _Change) -> None:
        """A tensor in place of the base's has its shape, or more or fewer rows (a vocabulary that has grown)."""
        for tensor in (change.own, change.bias.bias if change.bias else None):
            if tensor is None or target.base is None:
                continue
            if tensor.shape[1:] != target.base.shape[1:] or (
                len(tensor.shape) == 1 and tensor.shape != target.base.shape
            ):
                raise CheckpointError(
                    f"{self._adapter.label}: the adapter's {name} has shape {list(tensor.shape)}, that of "
                    f"{self._base.label} {list(target.base.shape)}"
                )
        if change.bias is not None and change.own is None and target.base is None:
            raise CheckpointError(f"{self._adapter.label}: {name} is added to, but {self._base.label} has none")

    def _misfit(self, name: str, part: LowRank, before: Tensor) -> CheckpointError:
        shape = part.shape[::-1] if part.is_embedding else part.shape
        return CheckpointError(
            f"{self._adapter.label}: the adapter changes {name} of shape {list(shape)}; in {self._base.label} it has "
            f"{list(before.shape)}"
        )


def _forms(part: LowRank, shape: tuple[int, ...]) -> list[str]:
    """How a product can be added to a tensor of this shape."""
    fits = ["product"] if part.shape == shape and not part.is_embedding else []
    if len(shape) == 2 and part.shape == shape[::-1]:
        fits.append("transposed")
    return fits


def _made(name: str, target: _Target, adapters: Sequence[Adapter]) -> Tensor:
    """The tensor of the result."""
    parts = [(adapters[index].weight, change) for index, change in target.changes.items()]
    stored = target.base.stored if target.base is not None else None
    if len(parts) == 1 and parts[0][0] == 1:
        return _as_stored(name, _changed(name, target.base, parts[0][1]), stored)
    if target.base is None:
        labels = " and ".join(adapters[index].label for index in target.changes)
        raise CheckpointError(
            f"{labels}: {name} is a tensor that the base has not: only one adapter, at weight 1, may bring it"
        )
    terms: list[_TermOf] = []
    for weight, change in parts:
        if change.own is None and (change.product is None or change.product.magnitude is None):
            terms += _terms(change, weight)
            continue
        changed = _changed(name, target.base, change)
        if changed.shape != target.base.shape:
            raise CheckpointError(
                f"{name}: an adapter makes it {list(changed.shape)}, the base has {list(target.base.shape)}: such an "
                "adapter must be the only one, at weight 1"
            )
        terms.append((("difference", weight), (changed,)))
    return _sum(name, target.base.shape, target.base, terms, target.base.stored)


# A term of the sum, and the tensors it is made of.
_TermOf = tuple[tuple[str, float], tuple[Tensor, ...]]


def _changed(name: str, base: Tensor | None, change: _Change) -> Tensor:
    """What one adapter, at weight 1, makes of a tensor."""
    before = change.own if change.own is not None else base
    assert before is not None  # there is one of the two
    part = change.product
    if part is not None and part.magnitude is not None:
        return _dora(name, before, part, change.form)
    terms = _terms(change, 1.0)
    return _sum(name, before.shape, before, terms, before.stored) if terms else before


def _terms(change: _Change, weight: float) -> list[_TermOf]:
    terms: list[_TermOf] = []
    if change.product is not None:
        part = change.product
        terms.append(((change.form, part.scale * weight), (part.a, part.b)))
    if change.bias is not None and change.bias.bias is not None:
        terms.append((("plain", change.bias.scale * weight), (change.bias.bias,)))
    return terms


def _sum(name: str, shape: tuple[int, ...], base: Tensor | None, terms: Sequence[_TermOf], stored: DType) -> TensorView:
    inputs = ((base,) if base is not None else ()) + tuple(tensor for _, parts in terms for tensor in parts)
    parameters = (("base", base is not None), ("terms", tuple(term for term, _ in terms)))
    return TensorView(name, _computed(inputs), shape, "adapter", inputs, parameters, stored)


def _dora(name: str, before: Tensor, part: LowRank, form: str) -> TensorView:
    assert part.magnitude is not None  # who calls this has looked
    inputs = (before, part.a, part.b, part.magnitude)
    is_turned = form == "transposed"
    parameters = (("by_columns", is_turned), ("scale", part.scale), ("transposed", is_turned))
    return TensorView(name, _computed(inputs), before.shape, "dora", inputs, parameters, before.stored)


def _as_stored(name: str, tensor: Tensor, stored: DType | None) -> Tensor:
    """The tensor under a name, written in the base's format."""
    if stored is None or tensor.stored == stored:
        return replace(tensor, name=name)
    if isinstance(tensor, TensorView):
        return replace(tensor, name=name, stored=stored)
    return _sum(name, tensor.shape, tensor, (), stored)


def _computed(inputs: Sequence[Tensor]) -> DType:
    return FLOAT64 if any(tensor.dtype == FLOAT64 for tensor in inputs) else FLOAT32


def _config(base: Checkpoint, made: Mapping[str, Tensor], *, has_new_head: bool) -> Mapping[str, object]:
    """The base's configuration, with the number of tokens that its embeddings have now, and its head untied."""
    if not base.config:
        return base.config
    stated = vocab_size(base.config)
    sizes = {
        tensor.shape[0]
        for name, tensor in made.items()
        if (before := base.tensors.get(name)) is not None
        and before.shape != tensor.shape
        and before.shape[:1] == (stated,)
    }
    config = with_vocab_size(base.config, sizes.pop()) if len(sizes) == 1 else base.config
    return with_head_of_its_own(config, is_tied_by_default=True) if has_new_head else config
