"""Opening what a recipe names, and compiling the recipe over it: from headers alone, then from digests."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from mergeflow.errors import CheckpointError, Position, Problem, RecipeError
from mergeflow.execute.events import BytesMoved, Listener, PhaseFinished, PhaseStarted
from mergeflow.graph.check import step_path
from mergeflow.graph.compile import compile_recipe
from mergeflow.graph.values import Compiled
from mergeflow.models.digests import DigestMemory
from mergeflow.models.identity import REMOTE
from mergeflow.models.open import open_model
from mergeflow.models.records import Checkpoint, TensorSource
from mergeflow.models.tokenizer import TOKENIZER_NAME
from mergeflow.models.tokenizer_files import with_tokenizer
from mergeflow.recipe.places import named_sources
from mergeflow.recipe.records import ModelReference, Recipe, Source
from mergeflow.recipe.tokenizers import models_with_copied_tokenizers, models_with_templates, models_with_tokenizers
from mergeflow.workflow.configuration import doubts_about_config
from mergeflow.workflow.options import Options

# As many names as a message lists.
MOST_NAMES = 10


@dataclass(frozen=True, slots=True)
class Parts:
    """What of a model is read besides its weights and its configuration."""

    tokenizer: bool
    copied_tokenizer: bool
    template: bool


@dataclass(frozen=True, slots=True)
class Opened:
    """What was opened and hashed already, for recipes of the same folder that read the same models: a sweep's.

    Args:
        models: each as it was opened, or why it could not be; by the reference and what is read of it.
        asked: the tensors whose digests were looked up, `digests` the known ones among them.
    """

    models: dict[tuple[ModelReference, Parts, bool], Checkpoint | CheckpointError | OSError] = field(
        default_factory=dict
    )
    asked: set[TensorSource] = field(default_factory=set)
    digests: dict[TensorSource, str] = field(default_factory=dict)


def compile_from_headers(
    recipe: Recipe,
    listen: Listener,
    *,
    download: bool,
    planned: Mapping[ModelReference, Checkpoint] | None = None,
    state: Path | None = None,
    opened: Opened | None = None,
) -> Compiled:
    """The graph of a recipe, and every problem there is: the recipe's, the models', the steps'.

    Args:
        download: bring hub models to this machine; otherwise their headers are enough.
        planned: the models as they were opened before: a branch of the hub that moved since does not matter.
        state: where digests are remembered; what depends on known ones alone has a key. None: nothing has.
        opened: what recipes before this one have opened; what this one opens is added.
    """
    opened = opened or Opened()
    checkpoints: dict[ModelReference, Checkpoint] = {}
    problems = list(recipe.problems)
    for reference, named in _references(recipe):
        try:
            before = (planned or {}).get(reference)
            checkpoints[reference] = _open(reference, recipe, listen, opened, download=download, before=before)
        except CheckpointError as error:
            problems.append(Problem(f"{error}{_no_name_either(reference, recipe)}", named.position, named.path))
        except OSError as error:  # a name too long for this system, a disk that fails
            problems.append(Problem(f"{reference}: {error.strerror or error}", named.position, named.path))
    tensors = (tensor for checkpoint in checkpoints.values() for tensor in checkpoint.tensors.values())
    sources = dict.fromkeys(source for tensor in tensors for source in tensor.sources())
    known = _known_digests(sources, state, opened) if state is not None else {}
    compiled = compile_recipe(recipe, checkpoints, known)
    found = [*problems, *compiled.problems, *doubts_about_config(compiled)]
    return replace(compiled, problems=in_file_order(found))


def compile_with_digests(
    recipe: Recipe, from_headers: Compiled, options: Options, listen: Listener, opened: Opened | None = None
) -> Compiled:
    """The same graph with a key for every node: tensors that this machine has not hashed before are read."""
    opened = opened or Opened()
    known = from_headers.graph.digests
    sources = [node.source for node in from_headers.graph if node.source is not None]
    unknown = [source for source in sources if source not in known]
    if not unknown:
        return from_headers
    unseen = [source for source in unknown if source not in opened.digests]
    if unseen:
        opened.digests.update(hash_sources(unseen, options, listen))
    hashed = {source: opened.digests[source] for source in unknown}
    compiled = compile_recipe(recipe, from_headers.checkpoints, {**known, **hashed})
    earlier = [problem for problem in from_headers.problems if problem not in compiled.problems]
    return replace(compiled, problems=in_file_order([*earlier, *compiled.problems]))


def is_elsewhere(checkpoint: Checkpoint) -> bool:
    """Whether something of a model is on the hub only: all of it, or an adapter of a model that is here."""
    sources = (source for tensor in checkpoint.tensors.values() for source in tensor.sources())
    files = (segment.file.path for source in sources for segment in source.segments)
    return checkpoint.folder is None or any(path.startswith(REMOTE) for path in files)


def _known_digests(sources: Iterable[TensorSource], state: Path, opened: Opened) -> dict[TensorSource, str]:
    """The digests that this machine remembers, each looked up once."""
    wanted = list(sources)
    unasked = [source for source in wanted if source not in opened.asked]
    if unasked:
        opened.asked.update(unasked)
        opened.digests.update(digest_memory(state).known(unasked))
    return {source: opened.digests[source] for source in wanted if source in opened.digests}


def digest_memory(state: Path) -> DigestMemory:
    """What this machine remembers of its models' files."""
    return DigestMemory(state / "digests.sqlite")


def check(compiled: Compiled, *, strict: bool) -> tuple[str, ...]:
    """The warnings of a recipe; raises RecipeError with every problem when one of them is an error."""
    problems = judged(compiled.problems, strict=strict)
    if any(problem.severity == "error" for problem in problems):
        raise RecipeError(problems)
    return tuple(str(problem) for problem in problems)


def judged(problems: tuple[Problem, ...], *, strict: bool) -> tuple[Problem, ...]:
    """The same problems; when we are strict, a warning is an error."""
    return tuple(replace(problem, severity="error") for problem in problems) if strict else problems


def in_file_order(problems: list[Problem]) -> tuple[Problem, ...]:
    """Each problem once, sorted by where it stands; those that stand nowhere come last."""
    unique = dict.fromkeys(problems)
    return tuple(sorted(unique, key=_place))


def _place(problem: Problem) -> tuple[int, int, int]:
    return (0, problem.position.line, problem.position.column) if problem.position else (1, 0, 0)


def hash_sources(sources: list[TensorSource], options: Options, listen: Listener) -> Mapping[TensorSource, str]:
    """The digests of tensors in files, read now where they are not remembered."""
    began = time.perf_counter()
    listen(PhaseStarted("digest", sum(source.nbytes for source in sources), len(sources)))
    digests = digest_memory(options.state).compute(
        sources, options.workers, lambda count: listen(BytesMoved(read=count))
    )
    listen(PhaseFinished("digest", time.perf_counter() - began))
    return digests


def _open(
    reference: ModelReference,
    recipe: Recipe,
    listen: Listener,
    opened: Opened,
    *,
    download: bool,
    before: Checkpoint | None,
) -> Checkpoint:
    """A model, opened unless it was opened before in the same way; what was refused then is refused again."""
    way = (reference, _parts(reference, recipe), download)
    if way not in opened.models:
        try:
            opened.models[way] = _open_anew(reference, recipe, listen, way[1], download=download, before=before)
        except (CheckpointError, OSError) as error:
            opened.models[way] = error
    found = opened.models[way]
    if isinstance(found, Checkpoint):
        return found
    raise found


def _open_anew(
    reference: ModelReference,
    recipe: Recipe,
    listen: Listener,
    parts: Parts,
    *,
    download: bool,
    before: Checkpoint | None,
) -> Checkpoint:
    folders = [Path(folder) for folder in (recipe.folder, recipe.fallback_folder) if folder]
    checkpoint = open_model(
        reference,
        folders,
        download=download,
        on_bytes=lambda n: listen(BytesMoved(read=n)),
        commit=before.revision if before else None,
        adapter_commits=before.adapter_revisions if before else (),
    )
    if parts.tokenizer or (parts.copied_tokenizer and TOKENIZER_NAME in checkpoint.files):
        return with_tokenizer(checkpoint, reference, folders, "tokenizer")
    return with_tokenizer(checkpoint, reference, folders, "chat template") if parts.template else checkpoint


def _parts(reference: ModelReference, recipe: Recipe) -> Parts:
    return Parts(
        tokenizer=reference in models_with_tokenizers(recipe),
        copied_tokenizer=reference in models_with_copied_tokenizers(recipe),
        template=reference in models_with_templates(recipe),
    )


@dataclass(frozen=True, slots=True)
class _Named:
    """The field that names a model."""

    path: str
    position: Position | None


def _references(recipe: Recipe) -> Iterator[tuple[ModelReference, _Named]]:
    """Every model of a recipe once, and where it is named: under `models`, else where it is used first."""
    found: dict[ModelReference, _Named] = {}
    for source, named in _uses(recipe):
        if isinstance(source, ModelReference):
            found.setdefault(source, named)
    for alias, reference in reversed(list(recipe.models.items())):
        if reference in found:
            found[reference] = _Named(f"models.{alias}", recipe.positions.get(alias))
    yield from found.items()


def _uses(recipe: Recipe) -> Iterator[tuple[Source | None, _Named]]:
    for step in recipe.steps:
        for source, path in named_sources(step):
            yield source, _Named(step_path(step, recipe.form, path), step.position(path))
    for output in recipe.outputs:
        yield output.tokenizer, _Named(f"outputs.{output.step}.tokenizer", output.position)


def _no_name_either(reference: ModelReference, recipe: Recipe) -> str:
    """What to add to a message about a model that is not there: a word may have been meant for a name of the recipe."""
    is_word = recipe.form == "native" and "/" not in reference.path and reference not in recipe.models.values()
    return f", and it is no step or name under 'models' of this recipe ({_names(recipe)})" if is_word else ""


def _names(recipe: Recipe) -> str:
    names = [*(step.name for step in recipe.steps), *recipe.models]
    return ", ".join(names[:MOST_NAMES]) + (", ..." if len(names) > MOST_NAMES else "")
