"""mergeflow.lock.json: what a model folder was made of, tensor by tensor.

The lock is written last, so a folder that has one is complete. It answers three questions: is this folder ours (may a
run replace it), which tensors in it are still what a new run would write (their keys), and how was this model made
(recipe, variables, resolved revisions, digests). It holds no time, no machine and no path but those the user wrote:
the same recipe and inputs give the same lock, byte for byte.

    {"format": 1, "mergeflow": VERSION,
     "step": ..., "recipe": TEXT, "variables": {...}, "steps": {name: TEXT},
     "models": {label: {"path", "revision", "digest", "tensors": {name: digest},
                        "adapters": [{"path", "revision", "weight"}],         of a model that has some
                        "made": {...}}},                                      of one that mergeflow made
     "files":  {path: blake3 of the bytes},
     "shards": [{"file", "size", "sample", "tensors": {name: {"key", "dtype", "shape", "offsets"}}}]}

A delta says ``"type": "delta"``, and its shards have the ``"metadata"`` of their headers; a ``"seed"`` is that of the
command line, where it was not the recipe's. `made` is as `mergeflow.output.lineage` says.

`offsets` count from the start of the file, so that a tensor can be read with `dd`. A lock is believed only as a whole:
laid out again from its own tensors, each shard must come to the offsets and the size that the lock states. `sample` is
`sample.sample_digest` of the shard; a lock may lack it (the first ones did), and then vouches for no bytes.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergeflow import dtypes
from mergeflow.errors import CheckpointError, OutputError
from mergeflow.models.strict_json import parse_object
from mergeflow.output.json_fields import Plain, count, mapping, scalars, sequence, text, texts
from mergeflow.output.layout import PLAIN_METADATA, OutputTensor, PlacedTensor, Shard, shard_of
from mergeflow.output.lineage import (
    Kind,
    Lineage,
    kind_entry,
    model_entry,
    parse_kind,
    parse_models,
    parse_seed,
)
from mergeflow.output.lineage import LockedAdapter as LockedAdapter
from mergeflow.output.lineage import LockedModel as LockedModel

LOCK_FILE = "mergeflow.lock.json"
LOCK_FORMAT = 1
# A model of 100,000 tensors has a lock of 40 MB.
MAX_LOCK_BYTES = 200_000_000

_LINE_WIDTH = 160


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
        type: weights, or a delta.
        seed: the seed of the command line, where it was not the recipe's.
    """

    version: str
    recipe: str
    step: str
    variables: Mapping[str, Plain] = field(default_factory=dict)
    models: Mapping[str, LockedModel] = field(default_factory=dict)
    steps: Mapping[str, str] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    shards: tuple[Shard, ...] = ()
    samples: Mapping[str, str] = field(default_factory=dict)
    type: Kind = "weights"
    seed: int | None = None


def lineage_of(lock: Lock) -> Lineage:
    """What a lock says of how its output was made."""
    models = {label: replace(model, tensors={}) for label, model in lock.models.items()}
    tensors = sum(len(shard.tensors) for shard in lock.shards)
    return Lineage(
        lock.version, lock.recipe, lock.step, lock.variables, lock.steps, models, tensors, lock.type, lock.seed
    )


def lock_json(lock: Lock) -> str:
    """The text of the lock file."""
    contents = {
        "format": LOCK_FORMAT,
        "mergeflow": lock.version,
        "step": lock.step,
        **kind_entry(lock.type, lock.seed),
        "recipe": lock.recipe,
        "variables": dict(lock.variables),
        "steps": dict(lock.steps),
        "models": {label: model_entry(model) for label, model in lock.models.items()},
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
        return read_lock_file(path) if os.path.lexists(path) else None
    except OSError as error:
        raise OutputError(f"cannot read {path}: {error.strerror or error}") from error


def read_lock_file(path: Path) -> Lock:
    """The lock in a file of any name.

    Raises:
        OutputError: it is damaged, or of another format.
        OSError: it cannot be read.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OutputError(f"cannot read {path}: not a file")
    with path.open("rb") as stream:
        content = stream.read(MAX_LOCK_BYTES + 1)
    if len(content) > MAX_LOCK_BYTES:
        raise OutputError(f"{path} cannot be used: it is larger than {MAX_LOCK_BYTES // 1_000_000} MB")
    try:
        return parse_lock(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise OutputError(f"cannot read {path}: {error}") from error
    except OutputError as error:
        raise OutputError(f"{path} cannot be used: {error}") from error


def parse_lock(content: str) -> Lock:
    """The lock that a text states.

    Raises:
        OutputError: it is not one, or contradicts itself.
    """
    try:
        entries = parse_object(content.encode("utf-8", "surrogatepass"), "the lock", unique=True)
    except CheckpointError as error:
        raise OutputError(f"not JSON ({error})") from error
    if entries.get("format") != LOCK_FORMAT:
        raise OutputError(f"its format is {entries.get('format')!r}, this mergeflow reads {LOCK_FORMAT}")

    shards = [_shard(entry) for entry in sequence(entries.get("shards"), "shards")]
    return Lock(
        version=text(entries.get("mergeflow"), "mergeflow"),
        recipe=text(entries.get("recipe"), "recipe"),
        step=text(entries.get("step"), "step"),
        variables=scalars(entries.get("variables"), "variables"),
        models=parse_models(entries.get("models"), "models"),
        steps=texts(entries.get("steps"), "steps"),
        files=texts(entries.get("files"), "files"),
        shards=tuple(shard for shard, _ in shards),
        samples={shard.file: sample for shard, sample in shards if sample is not None},
        type=parse_kind(entries, "the lock"),
        seed=parse_seed(entries, "the lock"),
    )


def _shard_entry(shard: Shard, sample: str | None) -> dict[str, object]:
    tensors = {placed.tensor.name: _tensor_entry(placed) for placed in shard.tensors}
    sampled: dict[str, object] = {} if sample is None else {"sample": sample}
    stated = {} if shard.metadata == PLAIN_METADATA else {"metadata": dict(shard.metadata)}
    return {"file": shard.file, "size": shard.size, **sampled, **stated, "tensors": tensors}


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


def _shard(entry: object) -> tuple[Shard, str | None]:
    fields = mapping(entry, "a shard")
    file = text(fields.get("file"), "a shard's file")
    if Path(file).name != file:
        raise OutputError(f"shard {file!r} is not a plain file name")

    tensors = mapping(fields.get("tensors"), f"{file}: tensors")
    metadata = texts(fields["metadata"], f"{file}: metadata") if "metadata" in fields else PLAIN_METADATA
    shard = shard_of(file, [_tensor(name, tensor) for name, tensor in tensors.items()], metadata)
    sample = text(fields["sample"], f"{file}: sample") if "sample" in fields else None
    if _shard_entry(shard, sample) != entry:
        raise OutputError(f"shard {file}: sizes and offsets do not belong to its tensors")
    return shard, sample


def _tensor(name: str, entry: object) -> OutputTensor:
    fields = mapping(entry, f"tensor {name}")
    key = fields.get("key")
    try:
        dtype = dtypes.by_name(text(fields.get("dtype"), f"tensor {name}: dtype"))
    except KeyError as error:
        raise OutputError(f"tensor {name}: unknown dtype {fields.get('dtype')!r}") from error
    shape = tuple(count(length, f"tensor {name}: shape") for length in sequence(fields.get("shape"), f"{name}: shape"))
    return OutputTensor(name, dtype, shape, None if key is None else text(key, f"tensor {name}: key"))
