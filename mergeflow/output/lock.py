"""mergeflow.lock.json: what a model folder was made of, tensor by tensor.

The lock is written last, so a folder that has one is complete. It answers three questions: is this folder ours (may a
run replace it), which tensors in it are still what a new run would write (their keys), and how was this model made
(recipe, variables, resolved revisions, digests). It holds no time, no machine and no path but those the user wrote:
the same recipe and inputs give the same lock, byte for byte.

    {"format": 1, "mergeflow": VERSION,
     "step": ..., "recipe": TEXT, "variables": {...}, "steps": {name: TEXT},
     "models": {label: {"path", "revision", "digest", "tensors": {name: digest},
                        "adapters": [{"path", "revision", "weight"}]}},       of a model that has some
     "files":  {path: blake3 of the bytes},
     "shards": [{"file", "size", "sample", "tensors": {name: {"key", "dtype", "shape", "offsets"}}}]}

`offsets` count from the start of the file, so that a tensor can be read with `dd`. A lock is believed only as a whole:
laid out again from its own tensors, each shard must come to the offsets and the size that the lock states. `sample` is
`sample.sample_digest` of the shard; a lock may lack it (the first ones did), and then vouches for no bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mergeflow import dtypes
from mergeflow.errors import OutputError
from mergeflow.output.layout import OutputTensor, PlacedTensor, Shard, shard_of

LOCK_FILE = "mergeflow.lock.json"
LOCK_FORMAT = 1

_LINE_WIDTH = 160


@dataclass(frozen=True, slots=True)
class LockedAdapter:
    """An adapter of an input: as the user wrote it, the commit a hub adapter was pinned to, and its factor."""

    path: str
    revision: str | None
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class LockedModel:
    """An input as it was resolved.

    Args:
        path: as the user wrote it: a folder or a hub id; empty for an adapter alone.
        revision: the commit a hub model was pinned to.
        digest: one digest for all the tensors that were used.
        tensors: digest by tensor name; may be empty.
        adapters: those added to it, in order.
    """

    path: str
    revision: str | None
    digest: str
    tensors: Mapping[str, str] = field(default_factory=dict)
    adapters: tuple[LockedAdapter, ...] = ()


@dataclass(frozen=True, slots=True)
class Lock:
    """What a model folder was made of. `files`, `shards` and `samples` are filled in by `publish`.

    Args:
        version: of the mergeflow that wrote it.
        recipe: the recipe's text, verbatim.
        step: the step whose result this is.
        variables: the recipe's variables as they were resolved for this run.
        models: the inputs by label.
        steps: one line of text per step, by name.
        files: blake3 digest by path, of every file of the folder that is neither shard nor lock.
        shards: what lies where.
        samples: `sample_digest` by file name, of every shard.
    """

    version: str
    recipe: str
    step: str
    variables: Mapping[str, bool | int | float | str] = field(default_factory=dict)
    models: Mapping[str, LockedModel] = field(default_factory=dict)
    steps: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    samples: Mapping[str, str] = field(default_factory=dict)


def lock_json(lock: Lock) -> str:
    """The text of the lock file."""
    contents = {
        "format": LOCK_FORMAT,
        "mergeflow": lock.version,
        "step": lock.step,
        "recipe": lock.recipe,
        "variables": dict(lock.variables),
        "steps": dict(lock.steps),
        "models": {label: _model_entry(model) for label, model in lock.models.items()},
        "files": dict(sorted(lock.files.items())),
        "shards": [_shard_entry(shard, lock.samples.get(shard.file)) for shard in lock.shards],
    }
    return _render(contents, "") + "\n"


def read_lock(folder: Path) -> Lock | None:
    """The lock of a model folder; None when the folder has none.

    Raises:
        OutputError: there is a lock file, but it is damaged or of another format.
    """
    path = folder / LOCK_FILE
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"cannot read {path}: {error}") from error
    try:
        return parse_lock(text)
    except OutputError as error:
        raise OutputError(f"{path} cannot be used: {error}") from error


def parse_lock(text: str) -> Lock:
    """The lock that `text` states.

    Raises:
        OutputError: it is not one, or contradicts itself.
    """
    try:
        contents = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise OutputError(f"not JSON ({error})") from error
    entries = _mapping(contents, "the lock")
    if entries.get("format") != LOCK_FORMAT:
        raise OutputError(f"its format is {entries.get('format')!r}, this mergeflow reads {LOCK_FORMAT}")

    shards = [_shard(entry) for entry in _sequence(entries.get("shards"), "shards")]
    return Lock(
        version=_text(entries.get("mergeflow"), "mergeflow"),
        recipe=_text(entries.get("recipe"), "recipe"),
        step=_text(entries.get("step"), "step"),
        variables=_scalars(entries.get("variables"), "variables"),
        models={label: _model(entry, label) for label, entry in _mapping(entries.get("models"), "models").items()},
        steps=_texts(entries.get("steps"), "steps"),
        files=_texts(entries.get("files"), "files"),
        shards=tuple(shard for shard, _ in shards),
        samples={shard.file: sample for shard, sample in shards if sample is not None},
    )


def _model_entry(model: LockedModel) -> dict[str, object]:
    tensors = dict(model.tensors)
    entry: dict[str, object] = {"path": model.path, "revision": model.revision, "digest": model.digest}
    adapters = [{"path": it.path, "revision": it.revision, "weight": it.weight} for it in model.adapters]
    return {**entry, **({"adapters": adapters} if adapters else {}), "tensors": tensors}


def _shard_entry(shard: Shard, sample: str | None) -> dict[str, object]:
    tensors = {placed.tensor.name: _tensor_entry(placed) for placed in shard.tensors}
    sampled = {} if sample is None else {"sample": sample}
    return {"file": shard.file, "size": shard.size, **sampled, "tensors": tensors}


def _tensor_entry(placed: PlacedTensor) -> dict[str, object]:
    tensor = placed.tensor
    offsets = [placed.offset, placed.offset + tensor.nbytes]
    return {"key": tensor.key, "dtype": tensor.dtype.name, "shape": list(tensor.shape), "offsets": offsets}


def _render(value: object, indent: str) -> str:
    """JSON in which a mapping of mappings is spread over lines: a tensor is a line, and two locks can be compared."""
    parts = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    line = json.dumps(value, ensure_ascii=False) if not any(isinstance(part, dict) for part in parts) else None
    if line is not None and (len(indent) + len(line) <= _LINE_WIDTH or not parts):
        return line

    deeper = indent + " "
    if isinstance(value, dict):
        inner = [f"{json.dumps(key, ensure_ascii=False)}: {_render(item, deeper)}" for key, item in value.items()]
        return "{\n" + ",\n".join(deeper + text for text in inner) + "\n" + indent + "}"
    return "[\n" + ",\n".join(deeper + _render(item, deeper) for item in parts) + "\n" + indent + "]"


def _model(entry: object, label: str) -> LockedModel:
    fields = _mapping(entry, f"models.{label}")
    return LockedModel(
        path=_text(fields.get("path"), f"models.{label}.path"),
        revision=_revision(fields, f"models.{label}.revision"),
        digest=_text(fields.get("digest"), f"models.{label}.digest"),
        tensors=_texts(fields.get("tensors"), f"models.{label}.tensors"),
        adapters=tuple(
            _adapter(adapter, f"models.{label}.adapters")
            for adapter in _sequence(fields.get("adapters", []), f"models.{label}.adapters")
        ),
    )


def _adapter(entry: object, where: str) -> LockedAdapter:
    fields = _mapping(entry, where)
    weight = fields.get("weight")
    if not isinstance(weight, int | float) or isinstance(weight, bool):
        raise OutputError(f"{where}.weight should be a number")
    return LockedAdapter(_text(fields.get("path"), f"{where}.path"), _revision(fields, f"{where}.revision"), weight)


def _revision(fields: Mapping[str, object], where: str) -> str | None:
    revision = fields.get("revision")
    return None if revision is None else _text(revision, where)


def _shard(entry: object) -> tuple[Shard, str | None]:
    fields = _mapping(entry, "a shard")
    file = _text(fields.get("file"), "a shard's file")
    if Path(file).name != file:
        raise OutputError(f"shard {file!r} is not a plain file name")

    tensors = _mapping(fields.get("tensors"), f"{file}: tensors")
    shard = shard_of(file, [_tensor(name, tensor) for name, tensor in tensors.items()])
    sample = _text(fields["sample"], f"{file}: sample") if "sample" in fields else None
    if _shard_entry(shard, sample) != entry:
        raise OutputError(f"shard {file}: sizes and offsets do not belong to its tensors")
    return shard, sample


def _tensor(name: str, entry: object) -> OutputTensor:
    fields = _mapping(entry, f"tensor {name}")
    key = fields.get("key")
    try:
        dtype = dtypes.by_name(_text(fields.get("dtype"), f"tensor {name}: dtype"))
    except KeyError as error:
        raise OutputError(f"tensor {name}: unknown dtype {fields.get('dtype')!r}") from error
    shape = tuple(
        _count(length, f"tensor {name}: shape") for length in _sequence(fields.get("shape"), f"{name}: shape")
    )
    return OutputTensor(name, dtype, shape, None if key is None else _text(key, f"tensor {name}: key"))


def _mapping(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise OutputError(f"{what} should be a mapping")
    return value


def _sequence(value: object, what: str) -> list[object]:
    if not isinstance(value, list):
        raise OutputError(f"{what} should be a list")
    return value


def _text(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise OutputError(f"{what} should be text")
    return value


def _count(value: object, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise OutputError(f"{what} should be a number of elements")
    return value


def _texts(value: object, what: str) -> dict[str, str]:
    return {key: _text(item, f"{what}.{key}") for key, item in _mapping(value, what).items()}


def _scalars(value: object, what: str) -> dict[str, bool | int | float | str]:
    scalars: dict[str, bool | int | float | str] = {}
    for key, item in _mapping(value, what).items():
        if not isinstance(item, (bool, int, float, str)):
            raise OutputError(f"{what}.{key} should be a plain value")
        scalars[key] = item
    return scalars
