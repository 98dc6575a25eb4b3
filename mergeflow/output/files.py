"""Which of the donor's files come with the merged model, and which do not.

The donor is the input whose configuration the output has; everything in its folder that is not a weight belongs to the
model (tokenizer, chat template, generation config, processors, remote code, sentence-transformers modules, licence) and
is copied as it is, never linked and never run. Files that we write ourselves replace the donor's. Left out, each with a
reason that the report lists, is what would be wrong beside merged weights: other weights, exports made from them, the
state of the donor's training, an adapter that loaders would apply by themselves.

When the tokenizer comes from another model, the files named in `TOKENIZER_FILES` come from there and none of them
from the donor: half of one tokenizer and half of another is worse than either.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from mergeflow.output.layout import INDEX_FILE
from mergeflow.output.lock import LOCK_FILE

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "tokenizer.model.v*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "bpe.codes",
    "spiece.model",
    "sentencepiece*.model",
    "*.spm",
    "*.tiktoken",
    "tekken.json",
    "normalizer.json",
    "tokenization_*.py",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*",
)

# Written by us for every output, whatever the donor has.
OWN_FILES = ("config.json", "README.md", INDEX_FILE, LOCK_FILE)

_WEIGHTS = re.compile(
    r".*\.(safetensors|bin|pt|pth|ckpt|h5|msgpack|ot|gguf|ggml|onnx|onnx_data|tflite|pdparams|npz)(\.index\.json)?"
)

# (pattern of the path, why it stays behind); the first that matches decides.
_LEFT_OUT = (
    ("mergekit_config.yml", "says how the donor was made, not this model"),
    ("adapter_config.json", "loaders would apply the adapter on top of the merged weights"),
    ("adapter_model.*", "loaders would apply the adapter on top of the merged weights"),
    (".git/*", "not part of the model"),
    (".cache/*", "not part of the model"),
    ("*__pycache__/*", "not part of the model"),
    (".*.mergeflow/*", "not part of the model"),
    ("onnx/*", "an export of the donor's weights"),
    ("openvino/*", "an export of the donor's weights"),
    ("coreml/*", "an export of the donor's weights"),
    ("checkpoint-*/*", "state of the donor's training"),
    ("runs/*", "state of the donor's training"),
    ("trainer_state.json", "state of the donor's training"),
    ("training_args.bin", "state of the donor's training"),
)
_OTHER_WEIGHTS = "weights of the donor, not of the merged model"


@dataclass(frozen=True, slots=True)
class NewFile:
    """A small file of the model folder: its path in the folder, and its bytes or the file to copy them from."""

    path: str
    content: bytes | Path


@dataclass(frozen=True, slots=True)
class DonorFiles:
    """What becomes of the donor's files: copied, replaced by ours, or left out (path, reason)."""

    copied: tuple[NewFile, ...]
    replaced: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...]


def donor_files(
    folder: Path,
    files: Sequence[str],
    tokenizer: tuple[Path, Sequence[str]] | None = None,
    written: Collection[str] = OWN_FILES,
) -> DonorFiles:
    """Sort the donor's files. Reads the donor's ``modules.json`` and lists its module folders; copies nothing.

    Args:
        folder: of the donor.
        files: paths of its files, relative to `folder`.
        tokenizer: folder and files of the model that the tokenizer is from, when that is not the donor.
        written: paths that the caller writes itself.
    """
    modules = tuple(_module_folders(folder))
    inside_modules = {path for module in modules for path in _files_in(folder, module)}

    copied, replaced, left_out = [], [], []
    for path in sorted({*files, *inside_modules}):
        reason = _reason_to_leave_out(path, inside_modules)
        if path in written or (tokenizer is not None and is_tokenizer_file(path)):
            replaced.append(path)
        elif reason is not None:
            left_out.append((path, reason))
        else:
            copied.append(NewFile(path, folder / path))

    if tokenizer is not None:
        other_folder, other_files = tokenizer
        wanted = (path for path in sorted(other_files) if is_tokenizer_file(path) and path not in written)
        copied += [NewFile(path, other_folder / path) for path in wanted]
    return DonorFiles(tuple(sorted(copied, key=lambda file: file.path)), tuple(replaced), tuple(left_out))


def is_tokenizer_file(path: str) -> bool:
    """Does this file of a model folder belong to its tokenizer?"""
    return any(fnmatchcase(path, pattern) for pattern in TOKENIZER_FILES)


def library_name(files: Iterable[str]) -> str:
    """The library that loads a folder with these files, as the hub calls it."""
    return "sentence-transformers" if "modules.json" in set(files) else "transformers"


def _reason_to_leave_out(path: str, inside_modules: Collection[str]) -> str | None:
    for pattern, reason in _LEFT_OUT:
        if fnmatchcase(path, pattern):
            return reason
    # A dense layer after the encoder has weights of its own, which no merge touches and no loader can do without.
    if _WEIGHTS.fullmatch(path) and path not in inside_modules:
        return _OTHER_WEIGHTS
    return None


def _module_folders(folder: Path) -> Iterator[str]:
    """Folders of the sentence-transformers modules that stand beside the encoder."""
    try:
        modules = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    for module in modules if isinstance(modules, list) else []:
        path = module.get("path") if isinstance(module, dict) else None
        kind = module.get("type") if isinstance(module, dict) else None
        if not isinstance(path, str) or not isinstance(kind, str) or kind.endswith(".Transformer"):
            continue
        parts = PurePosixPath(path).parts
        if parts and ".." not in parts and not PurePosixPath(path).is_absolute():
            yield PurePosixPath(path).as_posix()


def _files_in(folder: Path, module: str) -> Iterator[str]:
    for place, _, names in os.walk(folder / module):
        for name in names:
            yield (Path(place) / name).relative_to(folder).as_posix()
