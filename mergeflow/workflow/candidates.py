"""The candidates of a sweep before the first one runs: all compiled and checked, and what they have in common.

Models are opened once, digests looked up and computed once. A compiled candidate is held until it runs while all of
them together are of moderate size, and compiled again otherwise, which takes no reading.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from mergeflow.errors import Problem, RecipeError
from mergeflow.execute.events import Listener
from mergeflow.graph.plan import unkept_nodes
from mergeflow.graph.tasks import Known, needed_nodes
from mergeflow.graph.values import Compiled
from mergeflow.models.records import Checkpoint
from mergeflow.recipe.records import ModelReference, Output, Recipe
from mergeflow.recipe.sweep import merged_problems
from mergeflow.workflow.folders import check_folders, output_folder
from mergeflow.workflow.models import (
    Opened,
    compile_from_headers,
    compile_with_digests,
    in_file_order,
    is_elsewhere,
    judged,
)
from mergeflow.workflow.options import Options

# A node takes about a kilobyte.
MOST_NODES = 300_000


def folder_of(candidate: Recipe, out: Path | None) -> Path | None:
    """Where a candidate's outputs go below the folder of the command line; None for the recipe's own places."""
    return None if out is None else out / candidate.candidate


@dataclass
class Compilations:
    """The compiled candidates of one sweep.

    `is_local` says that every model is on this machine by now, `has_keys` that every tensor may be hashed.
    """

    options: Options
    listen: Listener
    opened: Opened = field(default_factory=Opened)
    models: dict[ModelReference, Checkpoint] = field(default_factory=dict)
    is_local: bool = False
    has_keys: bool = False
    _held: dict[str, Compiled] = field(default_factory=dict)

    def of(self, candidate: Recipe) -> Compiled:
        """A candidate, compiled as far as it can be now."""
        compiled = self._held.get(candidate.candidate) or self._from_headers(candidate)
        if self.has_keys:
            compiled = compile_with_digests(candidate, compiled, self.options, self.listen, self.opened)
        others = sum(len(held.graph) for name, held in self._held.items() if name != candidate.candidate)
        if others + len(compiled.graph) <= MOST_NODES:
            self._held[candidate.candidate] = compiled
        return compiled

    def let_go(self, candidate: Recipe) -> None:
        """A candidate that was run is not asked for again."""
        self._held.pop(candidate.candidate, None)

    def download(self) -> None:
        """From now on every model is brought to this machine, at the commit that was looked at."""
        self.is_local = True
        self._held.clear()

    def _from_headers(self, candidate: Recipe) -> Compiled:
        compiled = compile_from_headers(
            candidate,
            self.listen,
            download=self.is_local,
            planned=self.models,
            state=self.options.state,
            opened=self.opened,
        )
        self.models.update(compiled.checkpoints)
        return compiled

    @property
    def is_anything_elsewhere(self) -> bool:
        return any(map(is_elsewhere, self.models.values()))


def all_problems(recipe: Recipe, problems_of: Callable[[Recipe], Sequence[Problem]], strict: bool) -> tuple[str, ...]:
    """The warnings about the candidates of a recipe, each once.

    Raises:
        RecipeError: every problem of all candidates, when one of them is an error.
    """
    found = merged_problems({candidate.candidate: problems_of(candidate) for candidate in recipe.candidates})
    # What is wrong with the sweep itself is among the problems of each.
    problems = judged(in_file_order(found), strict=strict)
    if any(problem.severity == "error" for problem in problems):
        raise RecipeError(problems)
    return tuple(str(problem) for problem in problems)


def check_candidates(
    recipe: Recipe, compilations: Compilations, out: Path | None, *, needed: bool, strict: bool
) -> tuple[str, ...]:
    """Compile and check every candidate of a recipe, and the folders they are to be written to. Returns the warnings.

    Args:
        needed: an output without a folder is an error.

    Raises:
        RecipeError: all that is wrong with any of them.
        OutputError: a folder of the command line cannot be used.
    """
    warnings = all_problems(recipe, lambda candidate: compilations.of(candidate).problems, strict)
    models = compilations.models.values()
    all_problems(recipe, lambda candidate: _folder_problems(candidate, models, out, needed=needed), strict=False)
    clashing = list(clashes(recipe.candidates, out))
    if clashing:
        raise RecipeError(in_file_order(clashing))
    return warnings


def _folder_problems(
    candidate: Recipe, models: Iterable[Checkpoint], out: Path | None, *, needed: bool
) -> Sequence[Problem]:
    try:
        check_folders(candidate, models, folder_of(candidate, out), needed=needed)
    except RecipeError as error:
        return error.problems
    return ()


def clashes(candidates: Sequence[Recipe], out: Path | None) -> Iterator[Problem]:
    """Candidates that would write into the folder of another one."""
    places: dict[str, Recipe] = {}
    for candidate, output, place in _places(candidates, out):
        other = places.setdefault(os.path.realpath(place), candidate)
        if other is not candidate:
            message = (
                f"{place} is the folder of {other.candidate} and of {candidate.candidate}: write every swept variable "
                "in the path, or none (then each candidate gets a folder of its own below it)"
            )
            yield _problem(output, out, message)
    for candidate, output, place in _places(candidates, out):
        for parent in Path(os.path.realpath(place)).parents:
            other = places.get(str(parent), candidate)
            if other is not candidate:
                message = f"{place} (of {candidate.candidate}) lies in the folder of {other.candidate}: choose others"
                yield _problem(output, out, message)


def _places(candidates: Sequence[Recipe], out: Path | None) -> Iterator[tuple[Recipe, Output, Path]]:
    for candidate in candidates:
        for output in candidate.outputs:
            place = output_folder(candidate, output, folder_of(candidate, out))
            if place is not None:
                yield candidate, output, place


def _problem(output: Output, out: Path | None, message: str) -> Problem:
    return Problem(message) if out is not None else Problem(message, output.position, f"outputs.{output.step}")


class WantedAgain:
    """Which results several candidates need, in the order in which they run.

    What a candidate needs of what earlier ones compute is where its graph first meets their results: what lies below
    such a result is not needed when that is kept. Tensors of outputs are not counted, they are copied from folder to
    folder.
    """

    def __init__(self, candidates: Iterable[tuple[Recipe, Compiled]]) -> None:
        results: set[str] = set()
        statistics: set[str] = set()
        written: set[str] = set()
        self._needs: list[frozenset[str]] = []
        for recipe, compiled in candidates:
            graph = compiled.graph
            ends = [tensor.node for output in compiled.outputs for tensor in output.tensors]
            known = Known(frozenset(results), False, dict.fromkeys(statistics))
            unwritten = [node for node in ends if graph[node].key not in written]
            needed = needed_nodes(graph, unwritten, known)
            self._needs.append(frozenset(key for i in needed if (key := graph[i].key) in results and key is not None))
            made = _result_nodes(recipe, compiled)
            results.update(key for i in made if (key := graph[i].key) is not None)
            statistics.update(node.key for node in graph if node.kind == "statistic" and node.key is not None)
            written.update(key for i in ends if (key := graph[i].key) is not None)
        self._left = Counter(key for need in self._needs for key in need)

    def after(self, number: int) -> Mapping[str, int]:
        """By key, how many candidates after that `number` (from 0) need a result. Asked in their order, once each."""
        self._left.subtract(self._needs[number])
        return {key: count for key, count in self._left.items() if count > 0}


def _result_nodes(recipe: Recipe, compiled: Compiled) -> set[int]:
    """The results of steps that may be kept."""
    nodes = {tensor.node for result in compiled.results.values() for tensor in result.tensors.values()}
    return {i for i in nodes - unkept_nodes(recipe, compiled) if compiled.graph[i].kind != "load"}
