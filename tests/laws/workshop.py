"""A folder in which recipes are edited and run again and again, and what a run from nothing makes of the same recipe.

    models/{base,a,b}       inputs, which a test may change as it likes
    recipe.yaml             the recipe, as last written
    made/                   where runs write: what the last one left is what the next one finds
    cache-0, cache-1, state what runs remember

The run from nothing has no cache, an empty state folder and an empty output; its bytes are remembered by everything
that may change them.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from three_steps import let_settle
from tiny_checkpoints import llama_tensors, raw_bytes, write_model

import mergeflow
from mergeflow.cache.open import open_cache
from mergeflow.cache.store import Cache
from mergeflow.execute.events import Event
from mergeflow.workflow.options import Options
from mergeflow.workflow.report import RunReport

# Larger than a block of 65536 elements, so that memory, blocks and scratch files have something to do.
BIG = (270, 256)

Files = dict[str, bytes]


def quiet(event: Event) -> None:
    """A listener that does nothing."""


def model_tensors(seed: int, base: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """A small Llama with one tensor of two blocks; a fine-tune lies near its base."""
    drawn = llama_tensors(seed)
    generator = torch.Generator().manual_seed(seed)
    drawn["model.big.weight"] = torch.randn(*BIG, generator=generator)
    return drawn if base is None else {name: base[name] + value / 4 for name, value in drawn.items()}


@dataclass
class Workshop:
    """The folder, and how its recipe is run."""

    folder: Path
    cache: int = 0
    inputs_changed: int = 0
    expected: dict[object, Files] = field(default_factory=dict)

    @classmethod
    def opened(cls, folder: Path) -> Workshop:
        """A new folder with three models."""
        base = model_tensors(1)
        write_model(folder / "models" / "base", base)
        for seed, name in enumerate("ab"):
            write_model(folder / "models" / name, model_tensors(seed + 2, base))
        let_settle(folder)
        return cls(folder)

    @property
    def recipe(self) -> Path:
        return self.folder / "recipe.yaml"

    @property
    def made(self) -> Path:
        return self.folder / "made"

    @property
    def cache_folder(self) -> Path:
        return self.folder / f"cache-{self.cache}"

    def opened_cache(self) -> Cache:
        return open_cache(self.cache_folder)

    def options(self, **wishes: object) -> Options:
        stated: dict[str, object] = {
            "cache": self.cache_folder,
            "state": self.folder / "state",
            "workers": 1,
            "device": "cpu",
        }
        return Options(**(stated | wishes))  # type: ignore[arg-type]

    def run(self, listen: object = quiet, **wishes: object) -> RunReport:
        """The recipe run over whatever is there."""
        return mergeflow.run(self.recipe, self.made, options=self.options(**wishes), listen=listen)  # type: ignore[arg-type]

    def from_nothing(self, *more: object) -> Files:
        """Every file that a run from nothing writes; `more` is what the bytes depend on besides recipe and inputs."""
        known = (self.recipe.read_text(), self.inputs_changed, *more)
        if known not in self.expected:
            place = self.folder / "nothing"
            mergeflow.run(
                self.recipe, place / "made", options=self.options(cache=None, state=place / "state", workers=2)
            )
            self.expected[known] = raw_bytes(place / "made")
            shutil.rmtree(place)
        return self.expected[known]

    def found(self) -> Files:
        """Every file under the outputs' names, but for those that were set aside because somebody had edited them."""
        files = raw_bytes(self.made) if self.made.exists() else {}
        return {path: content for path, content in files.items() if ".bak" not in path}

    def file(self, model: str) -> Path:
        """The model's file of weights; the first, when there are several."""
        return sorted((self.folder / "models" / model).glob("*.safetensors"))[0]

    def change(self, model: str, name: str, factor: float, *, way: str) -> None:
        """Multiply one tensor of a model, in the file it lies in.

        `way` is ``rewritten`` (as trainers do), ``in place`` (the same inode), ``old times`` (the same inode, size and
        time of modification), or ``another file`` (which has the size and the time of the one it replaces).
        """
        files = sorted((self.folder / "models" / model).glob("*.safetensors"))
        path = next(path for path in files if name in load_file(path))
        tensors = load_file(path)
        before = path.stat()
        tensors[name] = tensors[name] * factor
        draft = path.with_suffix(".draft")
        save_file(tensors, draft, metadata={"format": "pt"})
        if way in ("in place", "old times"):
            with path.open("r+b") as file:
                file.write(draft.read_bytes())
            draft.unlink()
        else:
            os.replace(draft, path)
        if way in ("old times", "another file"):
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        self.inputs_changed += 1

    def reshard(self, model: str, shards: int) -> None:
        """The same tensors in another number of files."""
        folder = self.folder / "models" / model
        tensors = {}
        for path in folder.glob("*.safetensors"):
            tensors |= load_file(path)
        shutil.rmtree(folder)
        write_model(folder, tensors, shards=shards)
        self.inputs_changed += 1  # the lock names the files

    def swap(self, one: str, other: str) -> None:
        """Two models change names."""
        models = self.folder / "models"
        (models / one).rename(models / "away")
        (models / other).rename(models / one)
        (models / "away").rename(models / other)
        self.inputs_changed += 1

    def add_or_remove(self, name: str) -> None:
        """A tensor that all models have, or have no longer."""
        for seed, model in enumerate(("base", "a", "b")):
            path = self.file(model)
            tensors = load_file(path)
            if tensors.pop(name, None) is None:
                tensors[name] = torch.randn(6, 16, generator=torch.Generator().manual_seed(90 + seed))
            self._write(path, tensors, name)
        self.inputs_changed += 1

    def _write(self, path: Path, tensors: dict[str, torch.Tensor], name: str) -> None:
        """Write a file's tensors, and its folder's index where there is one."""
        save_file(tensors, path, metadata={"format": "pt"})
        index = path.parent / "model.safetensors.index.json"
        if not index.exists():
            return
        import json

        stated = json.loads(index.read_text())
        stated["weight_map"].pop(name, None)
        if name in tensors:
            stated["weight_map"][name] = path.name
        index.write_text(json.dumps(stated))

    def entries(self) -> list[Path]:
        """The folders of the cache's entries, sorted."""
        return sorted(path.parent for path in self.cache_folder.glob("v1/??/*/zarr.json"))

    def shards(self) -> list[Path]:
        """The shards of all outputs, sorted."""
        return sorted(self.made.rglob("*.safetensors")) if self.made.exists() else []


def flip(path: Path, place: int, mask: int) -> None:
    """Change one byte of a file."""
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= mask
    path.write_bytes(content)
