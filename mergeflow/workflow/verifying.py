"""Is an output what its lock says it is? In three steps, each of which believes less.

1. **files** (`output.integrity`): the shards' sizes, headers and samples, the digests of small files, no strangers.
2. **keys**: the recipe in the lock is compiled again over the actual inputs, and the key of every tensor compared with
   the lock's. An input whose bytes changed since is named, with the file and how many of its tensors.
3. **bytes**: every tensor is computed again from the inputs, without the cache, and compared with the file block by
   block, as a run would write it; nothing is written.

A tensor made of an input that changed is not computed: it would differ, and not by the output's fault. What cannot be
checked (an input that is not here, a method that nobody declares any more) is told as missing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mergeflow import __version__
from mergeflow.errors import RecipeError, counted
from mergeflow.execute.events import Listener
from mergeflow.graph.compile import compile_recipe
from mergeflow.graph.program import Place
from mergeflow.graph.tasks import Target
from mergeflow.graph.values import Compiled
from mergeflow.models.records import Checkpoint
from mergeflow.output.integrity import Fault, check_files
from mergeflow.output.layout import OutputTensor, Shard
from mergeflow.output.lineage import LockedModel
from mergeflow.output.lock import Lock, lineage_of
from mergeflow.recipe.records import Recipe
from mergeflow.workflow.exporting import exported_recipe
from mergeflow.workflow.inputs_again import find_inputs
from mergeflow.workflow.lineage import lock_at, locked_recipe
from mergeflow.workflow.models import compile_with_digests, digest_memory
from mergeflow.workflow.options import Options
from mergeflow.workflow.published import recall_folders
from mergeflow.workflow.recomputing import compare_bytes


@dataclass(frozen=True, slots=True)
class Verification:
    """What verifying an output has shown.

    Args:
        path: of the output.
        tensors: how many its lock states.
        keys: how many of them have the key that the recipe gives them now.
        bytes: how many of them were computed again and are the same, byte for byte.
        faults: everything that differs.
        missing: why something could not be checked.
    """

    path: str
    tensors: int
    keys: int
    bytes: int
    faults: tuple[Fault, ...]
    missing: tuple[str, ...]
    quick: bool

    @property
    def exit_code(self) -> int:
        """0 when all that was asked is equal, 3 when something differs, 1 when something could not be checked."""
        return 3 if self.faults else 1 if self.missing else 0


def verify_output(
    out: Path,
    options: Options,
    listen: Listener,
    *,
    models: Path | None = None,
    quick: bool = False,
    cached: bool = False,
) -> Verification:
    """Compare an output with its lock, with its recipe and its inputs, and (unless `quick`) with its own bytes.

    Args:
        out: its folder, or a delta in one file.
        options: `cache` counts only when it may be believed (`cached`).
        models: a folder to look for the inputs in.

    Raises:
        OutputError: `out` is no output of mergeflow.
        RunError: a file cannot be read, or changed meanwhile.
    """
    lock = lock_at(out)
    folder = out if out.is_dir() else out.parent
    files = check_files(folder, lock)
    rebuilt = _rebuild(lock, _folders(out, options), models, options, listen)
    placed = {it.tensor.name: it.tensor for shard in lock.shards for it in shard.tensors}
    if isinstance(rebuilt, tuple):
        return Verification(str(out), len(placed), 0, 0, files.faults, rebuilt, quick)
    keyed = _compare_keys(lock, placed, rebuilt)
    equal = 0
    different: tuple[Fault, ...] = ()
    if not quick:
        targets = list(_targets(folder, lock, files.sound, keyed.nodes))
        believed = options if cached else replace(options, cache=None)
        different = tuple(compare_bytes(rebuilt.recipe, rebuilt.compiled, targets, believed, listen))
        equal = len(targets) - len(different)
    faults = (*files.faults, *keyed.faults, *different)
    return Verification(str(out), len(placed), keyed.equal, equal, faults, (), quick)


@dataclass(frozen=True, slots=True)
class _Rebuilt:
    """The recipe of a lock, compiled over the inputs as they are now."""

    recipe: Recipe
    compiled: Compiled
    inputs: tuple[Fault, ...]
    changed: frozenset[int]


@dataclass(frozen=True, slots=True)
class _Keyed:
    """What comparing keys has shown; `nodes` are those of the tensors that can be computed again, by name."""

    faults: tuple[Fault, ...]
    equal: int
    nodes: Mapping[str, int]


def _folders(out: Path, options: Options) -> tuple[Path, ...]:
    return recall_folders(options.state, out) or (Path.cwd(),)


def _rebuild(
    lock: Lock, folders: Sequence[Path], models: Path | None, options: Options, listen: Listener
) -> _Rebuilt | tuple[str, ...]:
    """The recipe over its inputs; why that cannot be done when it cannot."""
    whole = locked_recipe(lineage_of(lock), folders[0])
    try:
        recipe = replace(exported_recipe(whole, lock.step, "folder"), outputs=())
    except RecipeError as error:
        return tuple(f"the recipe in the lock: {problem.message}" for problem in error.problems)
    found = find_inputs(recipe, lock.models, folders, models)
    sources = {
        source for it in found.checkpoints.values() for tensor in it.tensors.values() for source in tensor.sources()
    }
    known = digest_memory(options.state).known(list(sources))
    compiled = compile_recipe(recipe, found.checkpoints, known)
    problems = [*recipe.problems, *compiled.problems]
    wrong = dict.fromkeys(_told(problem.message) for problem in problems if problem.severity == "error")
    if found.missing or wrong or lock.step not in compiled.results:
        return (*found.missing, *wrong) or (f"the recipe in the lock gives no {lock.step}",)
    compiled = compile_with_digests(recipe, compiled, options, listen)
    faults, changed = _changed_inputs(lock, compiled)
    return _Rebuilt(recipe, compiled, faults, changed)


def _told(message: str) -> str:
    if "there is no merge method" in message:
        return f"{message}; if it is your own, import the module that declares it, or install its plug-in"
    return message


def _changed_inputs(lock: Lock, compiled: Compiled) -> tuple[tuple[Fault, ...], frozenset[int]]:
    """The inputs that are not what the lock says, and the values they have now."""
    faults: list[Fault] = []
    changed: set[int] = set()
    for reference, checkpoint in compiled.checkpoints.items():
        locked = lock.models.get(str(reference))
        if locked is None:
            faults.append(Fault("input", str(reference), "is not among the inputs of the lock"))
            changed.update(compiled.graph.load(source) for source in checkpoint.tensors.values())
            continue
        names = [name for name in checkpoint.tensors if _is_changed(name, locked, checkpoint, compiled)]
        changed.update(compiled.graph.load(checkpoint.tensors[name]) for name in names)
        faults += _told_by_file(reference.path or str(reference), checkpoint, names)
        lost = [name for name in locked.tensors if name not in checkpoint.tensors]
        if lost:
            faults.append(
                Fault("input", str(reference), f"lacks {counted(len(lost), 'tensor')} that it had: {lost[0]}")
            )
    return tuple(faults), frozenset(changed)


def _is_changed(name: str, locked: LockedModel, checkpoint: Checkpoint, compiled: Compiled) -> bool:
    return locked.tensors.get(name) != compiled.graph.key(checkpoint.tensors[name])


def _told_by_file(label: str, checkpoint: Checkpoint, names: Sequence[str]) -> Iterator[Fault]:
    """``math/model-00002.safetensors changed: 3 of 9 tensors``."""
    files = {name: _file_of(name, checkpoint) for name in checkpoint.tensors}
    for file in dict.fromkeys(files[name] for name in names):
        here = sum(1 for found in files.values() if found == file)
        many = sum(1 for name in names if files[name] == file)
        owner = Path(label).name
        name = owner if owner == file else f"{owner}/{file}"
        yield Fault("input", name, f"changed: {many} of {counted(here, 'tensor')}")


def _file_of(name: str, checkpoint: Checkpoint) -> str:
    sources = (segment for source in checkpoint.tensors[name].sources() for segment in source.segments)
    first = next(sources, None)
    return Path(first.file.path).name if first is not None else ""


def _compare_keys(lock: Lock, placed: Mapping[str, OutputTensor], rebuilt: _Rebuilt) -> _Keyed:
    graph, result = rebuilt.compiled.graph, rebuilt.compiled.results[lock.step]
    affected = _affected(rebuilt)
    faults: list[Fault] = list(rebuilt.inputs)
    nodes: dict[str, int] = {}
    equal = 0
    for name, tensor in placed.items():
        if name not in result.tensors:
            faults.append(Fault("key", name, "is a tensor that the recipe does not give"))
            continue
        node = graph[result.tensors[name].node]
        if node.dtype is not None and node.dtype.is_float and tensor.dtype.is_float:
            node = graph[graph.cast(node.id, tensor.dtype)]
        if (node.dtype, node.shape) != (tensor.dtype, tensor.shape):
            faults.append(
                Fault("key", name, f"has dtype {tensor.dtype} and shape {list(tensor.shape)}, not the recipe's")
            )
            continue
        equal += node.key == tensor.key
        if node.id in affected or any(i in affected for i in node.inputs):
            faults.append(Fault("key", name, "depends on an input that changed"))
            continue
        if node.key != tensor.key:
            faults.append(Fault("key", name, _why_another_key(lock)))
        nodes[name] = node.id
    faults += [Fault("key", name, "is missing: the recipe gives it") for name in result.tensors if name not in placed]
    return _Keyed(tuple(faults), equal, nodes)


def _why_another_key(lock: Lock) -> str:
    if lock.version != __version__:
        return f"has another key now: mergeflow {lock.version} made it, and this is {__version__}"
    return "has another key than its recipe gives it: the lock was edited, or a method changed"


def _affected(rebuilt: _Rebuilt) -> set[int]:
    """Every value that depends on an input that changed. Nodes are in topological order."""
    found = set(rebuilt.changed)
    for node in rebuilt.compiled.graph:
        if any(i in found for i in node.inputs):
            found.add(node.id)
    return found


def _targets(folder: Path, lock: Lock, sound: Sequence[Shard], nodes: Mapping[str, int]) -> Iterator[Target]:
    """The tensors to compute, each with the place of its bytes in the output."""
    for shard in sound:
        for it in shard.tensors:
            if it.tensor.name in nodes:
                place = Place(os.path.abspath(folder / shard.file), it.offset)
                yield Target(nodes[it.tensor.name], it.tensor.name, lock.step, place)
