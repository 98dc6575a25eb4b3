"""Which files of a folder (or of a repository on the hub) hold a model's weights, and how each of them is read.

The first of these that is there, whatever else lies beside it:

    model.safetensors.index.json, delta.safetensors.index.json, model.safetensors, the only *.safetensors file,
    pytorch_model.bin.index.json, pytorch_model.bin, the only *.bin, *.pt, *.pth or *.ckpt file,
    the only *.gguf file

So safetensors win over pickles of the same model, and an index over a single file: what is left over from an earlier
save is not read. What a trainer leaves beside the weights (optimizer and random states, its arguments) is never taken
for them. Several files without an index are refused with the way out: which of them are the model is not guessed.

`READERS` says how a file is read, by the end of its name. A reader looks at what describes the tensors and reads none.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from types import MappingProxyType

from mergeflow.errors import CheckpointError
from mergeflow.models.gguf import read_gguf_tensors
from mergeflow.models.header import read_header
from mergeflow.models.index import INDEX_NAME, PICKLED_INDEX_NAME, PICKLED_SUFFIXES, SINGLE_NAME
from mergeflow.models.pickled import read_pickled
from mergeflow.models.records import TensorSource, TensorView

Tensors = Mapping[str, TensorSource | TensorView]
Reader = Callable[[Path], Tensors]

SAFETENSORS = ".safetensors"
GGUF = ".gguf"
# The place of files that are listed by the hub: one of them has no path that could be named.
REPOSITORY = "the repository"
PICKLED_NAME = "pytorch_model.bin"
# What mergeflow calls a delta that it exports.
DELTA_NAME = "delta.safetensors"
DELTA_INDEX_NAME = "delta.safetensors.index.json"
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
ADAPTER_NAMES = frozenset({*ADAPTER_WEIGHTS, ADAPTER_CONFIG})

# What trainers and exporters save beside the weights, in files that end like them.
_NO_WEIGHTS = re.compile(
    r"(training_args|trainer_state|optimizer|optim|scheduler|scaler|rng_state|random_states|adapter_model)[\w.-]*"
    r"|global_step.*|.*_optim_states\.pt",
)


@dataclass(frozen=True, slots=True)
class WeightsFiles:
    """Where the weights of a folder are: in the shards that `index` names, or in `file`. One of the two is set."""

    index: str | None = None
    file: str | None = None


@dataclass(frozen=True, slots=True)
class Contents:
    """What a folder is taken for: where its weights are (from its names, the label and the place), and its config."""

    find: Callable[[Iterable[str], str, str], WeightsFiles]
    config: str


def _read_safetensors(path: Path) -> Tensors:
    return read_header(path).tensors


READERS: Mapping[str, Reader] = MappingProxyType(
    {
        SAFETENSORS: _read_safetensors,
        **dict.fromkeys(PICKLED_SUFFIXES, read_pickled),
        GGUF: read_gguf_tensors,
    }
)


def read_weights(path: Path) -> Tensors:
    """The tensors of one file, from what describes them.

    Raises:
        CheckpointError: the file is damaged or lying, or its name is not that of weights we read.
    """
    return READERS[weights_suffix(path.name, str(path))](path)


def is_weights_file(name: str) -> bool:
    """Whether the end of a file's name says that it holds weights we read."""
    return PurePosixPath(name).suffix.lower() in READERS


def weights_suffix(name: str, where: str) -> str:
    """The end of a weights file's name, as `READERS` has it.

    Raises:
        CheckpointError: it is none of them.
    """
    suffix = PurePosixPath(name).suffix.lower()
    if suffix not in READERS:
        raise CheckpointError(f"{where}: not a file of weights; those end in {', '.join(READERS)}")
    return suffix


def find_weights(names: Iterable[str], label: str, place: str) -> WeightsFiles:
    """Where the weights are, chosen from the names of a folder's files.

    Args:
        label: the model as the user wrote it.
        place: the folder, for messages.

    Raises:
        CheckpointError: there are none, or it is not clear which.
    """
    listed = {name for name in names if not name.startswith(".")}
    if INDEX_NAME in listed:
        return WeightsFiles(index=INDEX_NAME)
    tensors = _ending_in(listed, SAFETENSORS)
    if DELTA_INDEX_NAME in listed:
        return WeightsFiles(index=DELTA_INDEX_NAME)
    if SINGLE_NAME in listed or tensors:
        return WeightsFiles(file=_only(tensors, SINGLE_NAME, "safetensors", INDEX_NAME, label, place))
    if PICKLED_INDEX_NAME in listed:
        return WeightsFiles(index=PICKLED_INDEX_NAME)
    pickled = _ending_in(listed, *PICKLED_SUFFIXES)
    if pickled:
        return WeightsFiles(file=_only(pickled, PICKLED_NAME, "pickled", PICKLED_INDEX_NAME, label, place))
    quantised = _ending_in(listed, GGUF) if GGUF in READERS else []
    if len(quantised) == 1:
        return WeightsFiles(file=quantised[0])
    if quantised:
        way = "download one of them and name the local copy"
        if place != REPOSITORY:
            way = f"name one of them: {label.rstrip('/')}/{quantised[0]}"
        raise CheckpointError(f"{label}: {place} holds {len(quantised)} GGUF files ({quantised[0]}, ...); {way}")
    if listed & ADAPTER_NAMES:
        raise _adapter(label, place)
    raise CheckpointError(f"{label}: no weights in {place} (files that end in {', '.join(READERS)})")


def find_adapter(names: Iterable[str], label: str, place: str) -> WeightsFiles:
    """Where the weights of a low-rank adapter are, chosen from the names of a folder's files.

    Raises:
        CheckpointError: they are not there.
    """
    listed = set(names)
    if ADAPTER_CONFIG not in listed:
        raise CheckpointError(f"{label}: {place} holds no adapter: it has no {ADAPTER_CONFIG}")
    found = next((name for name in ADAPTER_WEIGHTS if name in listed), None)
    if found is None:
        raise CheckpointError(
            f"{label}: {place} has an {ADAPTER_CONFIG}, but neither of {' and '.join(ADAPTER_WEIGHTS)}"
        )
    return WeightsFiles(file=found)


MODEL = Contents(find_weights, "config.json")
ADAPTER = Contents(find_adapter, ADAPTER_CONFIG)


def _ending_in(names: Iterable[str], *suffixes: str) -> list[str]:
    """The weights among some files, by the end of their names."""
    return sorted(name for name in names if name.lower().endswith(suffixes) and not _NO_WEIGHTS.fullmatch(name))


def _only(candidates: list[str], usual: str, kind: str, index: str, label: str, place: str) -> str:
    """The usual name, else the only one there is."""
    if usual in candidates:
        return usual
    if len(candidates) > 1:
        raise CheckpointError(
            f"{label}: {place} holds {len(candidates)} {kind} files ({candidates[0]}, ...), "
            f"but neither {usual} nor {index}"
        )
    return candidates[0]


def _adapter(label: str, place: str) -> CheckpointError:
    return CheckpointError(
        f"{label}: {place} holds a LoRA adapter, not a model; write it behind its base: BASE+{label}"
    )
