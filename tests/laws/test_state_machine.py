"""The second law under everything that may happen between two runs, at random.

A machine edits the recipe, the inputs, the cache, the state folder, the versions of operations and the outputs, runs,
interrupts runs, and asks for blocks and threads of any number. After every step the recipe is run, and its outputs
must equal, file by file, those of a run from nothing; run once more, nothing is computed, read or written.

When it fails, hypothesis prints the steps. They are not made fewer (each try takes a minute): add Phase.shrink below.
"""

from __future__ import annotations

import gc
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from three_steps import let_settle
from wordings import FINALS, MIXES, SPARSIFIERS, Style, Value, Wording, numbers, styles, values
from workshop import Files, Workshop, flip

import mergeflow.execute.engine
from mergeflow.cache.care import clear
from mergeflow.errors import OutputError
from mergeflow.execute.events import Event
from mergeflow.graph.program import Program
from mergeflow.methods import ops
from mergeflow.methods.kernels import elementwise
from mergeflow.methods.kernels.protocols import statistic_kernel
from mergeflow.methods.schema import Op
from mergeflow.workflow.report import RunReport

MODELS = st.sampled_from(["base", "a", "b"])
TENSORS = st.sampled_from(
    ["model.layers.0.mlp.down_proj.weight", "model.layers.1.input_layernorm.weight", "lm_head.weight"]
)
PICKS = st.integers(0, 1 << 20)
WAYS = st.sampled_from(["rewritten", "in place", "old times", "another file"])
STEPS = st.sampled_from(["delta_a", "thinned", "reduced", "mixed", "final"])


class Interrupted(Exception):
    """What ends a run in the middle."""


def other_task_vector(*arguments: object) -> None:
    """`task_vector` as another version would compute it: twice as long."""
    elementwise.task_vector(*arguments)  # type: ignore[arg-type]
    arguments[3].mul_(2)  # type: ignore[attr-defined]


def other_threshold(size: int, parameters: dict[str, int]) -> object:
    """`kth_magnitude` as another version would compute it: of half as many."""
    return statistic_kernel(ORIGINAL["kth_magnitude"])(size, {**parameters, "k": max(1, parameters["k"] // 2)})


ORIGINAL = dict(ops.OPS)
OTHER = {
    "task_vector": replace(ORIGINAL["task_vector"], version=1001, kernel=f"{__name__}:other_task_vector"),
    "kth_magnitude": replace(ORIGINAL["kth_magnitude"], version=1001, kernel=f"{__name__}:other_threshold"),
}


@contextmanager
def table_of(versions: set[str], *, native: bool) -> Iterator[None]:
    """The operations with other versions of some of them; torch computes those, and everything unless `native`."""
    table = cast("dict[str, Op]", gc.get_referents(ops.OPS)[0])  # what the read-only view is of
    judge = mergeflow.execute.engine.is_native

    def is_native(program: Program) -> bool:
        return native and judge(program) and not versions.intersection(it.op for it in program.instructions)

    try:
        table.update({op: OTHER[op] for op in versions})
        mergeflow.execute.engine.is_native = is_native
        yield
    finally:
        table.update(ORIGINAL)
        mergeflow.execute.engine.is_native = judge


class Edits(RuleBasedStateMachine):
    """A workshop, and all that may be done in it."""

    @initialize()
    def open(self) -> None:
        self.place = tempfile.TemporaryDirectory()
        self.shop = Workshop.opened(Path(self.place.name))
        self.wording, self.style = Wording(), Style()
        self.versions: set[str] = set()
        self.native = True
        self.wishes: dict[str, object] = {}
        self.report: RunReport | None = None
        self.folders: set[Path] = set()
        self.may_compute = True

    def teardown(self) -> None:
        if hasattr(self, "place"):
            self.place.cleanup()

    @invariant()
    def a_run_gives_what_a_run_from_nothing_gives(self) -> None:
        if not hasattr(self, "place"):
            return
        self.write_recipe()
        before, report = self.report, self.run()
        assert self.shop.found() == self.expected()
        counts = report.tensors
        assert counts.computed + counts.cached + counts.kept == counts.total
        if not self.may_compute and before is not None:
            assert report.statistics["computed"] == 0
            assert (counts.kept, report.bytes.written) == (counts.total, 0)
        self.report, self.may_compute = report, True

    def expected(self) -> Files:
        with table_of(self.versions, native=True):
            return self.shop.from_nothing(*sorted(self.versions))

    def write_recipe(self) -> None:
        """Write the recipe; outputs that it does not have any more are deleted."""
        self.shop.recipe.write_text(self.wording.text(self.style))
        names = [self.style.names[role] for role in self.wording.written()]
        folders = {self.shop.made / name if len(names) > 1 else self.shop.made for name in names}
        gone = self.folders - folders
        if gone and (self.shop.made in gone or self.shop.made in folders):
            gone = {self.shop.made}  # one output is the folder, several lie in it
        for folder in gone:
            shutil.rmtree(folder, ignore_errors=True)
        self.folders = folders

    def run(self, listen: Callable[[Event], None] = lambda event: None) -> RunReport:
        with table_of(self.versions, native=self.native):
            return self.shop.run(listen, **self.wishes)

    # The recipe.

    @rule(name=numbers, value=values)
    def say_another_number(self, name: str, value: Value) -> None:
        self.wording = self.wording.with_number(name, value)

    @rule(mix=st.sampled_from(list(MIXES)), final=st.sampled_from(FINALS))
    def say_other_methods(self, mix: str, final: str) -> None:
        self.wording = replace(self.wording, mix=mix, final=final)

    @rule(sparsifier=st.sampled_from(SPARSIFIERS), seed=st.integers(0, 2), rank=st.integers(1, 3))
    def say_other_words_and_seeds(self, sparsifier: str, seed: int, rank: int) -> None:
        self.wording = replace(self.wording, sparsifier=sparsifier, seed=seed, rank=rank)

    @rule(thinned=st.booleans(), reduced=st.booleans(), side=st.booleans())
    def add_and_remove_steps(self, thinned: bool, reduced: bool, side: bool) -> None:
        self.wording = replace(self.wording, uses_thinned=thinned, uses_reduced=reduced, has_side=side)

    @rule(step=STEPS, policy=st.sampled_from(["auto", "always", "never"]))
    def say_what_is_cached(self, step: str, policy: str) -> None:
        self.wording = replace(self.wording, policies={**self.wording.policies, step: policy})

    @rule(step=STEPS, dtype=st.sampled_from(["float32", "bfloat16"]))
    def round_a_step(self, step: str, dtype: str) -> None:
        self.wording = replace(self.wording, dtypes={**self.wording.dtypes, step: dtype})

    @rule(
        outputs=st.sampled_from([("final",), ("mixed",), ("final", "mixed"), ("mixed", "side", "final")]),
        dtype=st.sampled_from(["", "float16"]),
        shard_size=st.sampled_from(["5GB", "3KB", "200KB"]),
    )
    def write_other_outputs(self, outputs: tuple[str, ...], dtype: str, shard_size: str) -> None:
        self.wording = replace(self.wording, outputs=outputs, output_dtype=dtype, shard_size=shard_size)

    @rule(style=styles())
    def write_it_otherwise(self, style: Style) -> None:
        """Names, order and comments: nothing is computed for them."""
        if len(self.wording.written()) > 1:  # the folders are called after the steps
            style = replace(style, names={**style.names, **{it: self.style.names[it] for it in self.wording.written()}})
            if len(set(style.names.values())) < len(style.names):
                return
        self.style, self.may_compute = style, False

    # How it is run.

    @rule(
        native=st.booleans(),
        workers=st.integers(1, 3),
        memory=st.sampled_from([None, 1, 40 << 20]),
        cached=st.booleans(),
    )
    def run_it_otherwise(self, native: bool, workers: int, memory: int | None, cached: bool) -> None:
        self.native, self.wishes = native, {"workers": workers, "memory": memory}
        self.wishes |= {} if cached else {"cache": None}
        self.may_compute = False

    @rule()
    def nothing(self) -> None:
        self.may_compute = False

    @rule(versions=st.sets(st.sampled_from(sorted(OTHER))))
    def other_versions_of_operations(self, versions: set[str]) -> None:
        self.versions = versions

    # The inputs.

    @rule(model=MODELS, name=TENSORS, factor=st.sampled_from([0.5, 2.0, -1.0]), way=WAYS, settled=st.booleans())
    def change_a_tensor(self, model: str, name: str, factor: float, way: str, settled: bool) -> None:
        self.shop.change(model, name, factor, way=way)
        self.settle(settled)

    @rule(model=MODELS, settled=st.booleans())
    def touch_a_model(self, model: str, settled: bool) -> None:
        """Another time and nothing else: it is hashed again, and nothing is computed."""
        self.shop.file(model).touch()
        self.settle(settled)
        self.may_compute = False

    @rule(model=MODELS, shards=st.integers(1, 3), settled=st.booleans())
    def cut_a_model_otherwise(self, model: str, shards: int, settled: bool) -> None:
        self.shop.reshard(model, shards)
        self.settle(settled)
        self.may_compute = False

    @rule(settled=st.booleans())
    def add_or_remove_a_tensor(self, settled: bool) -> None:
        self.shop.add_or_remove("model.more.weight")
        self.settle(settled)

    @rule(pair=st.sampled_from([("a", "b"), ("base", "a")]))
    def swap_two_models(self, pair: tuple[str, str]) -> None:
        self.shop.swap(*pair)

    def settle(self, settled: bool) -> None:
        """Wait until digests may be remembered, or do not."""
        if settled:
            let_settle(self.shop.folder)

    # The cache and the state folder.

    @rule(cache=st.integers(0, 1))
    def take_another_cache(self, cache: int) -> None:
        self.shop.cache = cache

    @rule(pick=PICKS, step=st.integers(1, 3))
    def delete_entries(self, pick: int, step: int) -> None:
        for entry in self.shop.entries()[pick % step :: step]:
            shutil.rmtree(entry)

    @rule(picks=st.lists(st.tuples(PICKS, PICKS, st.integers(1, 255)), min_size=1, max_size=6))
    def flip_bytes_of_entries(self, picks: list[tuple[int, int, int]]) -> None:
        files = [path for entry in self.shop.entries() for path in sorted(entry.iterdir())]
        for which, place, mask in picks if files else []:
            flip(files[which % len(files)], place, mask)

    @rule(which=PICKS, other=PICKS)
    def put_an_entry_under_another_key(self, which: int, other: int) -> None:
        entries = self.shop.entries()
        if len(entries) > 1 and entries[which % len(entries)] != entries[other % len(entries)]:
            shutil.rmtree(entries[other % len(entries)])
            shutil.copytree(entries[which % len(entries)], entries[other % len(entries)])

    @rule(how=st.sampled_from(["clear", "rmtree", "tag"]))
    def empty_the_cache(self, how: str) -> None:
        if how == "clear":
            clear(self.shop.opened_cache())
        else:
            shutil.rmtree(self.shop.cache_folder, ignore_errors=True)

    @rule(what=st.sampled_from(["digests", "all", "rubbish"]))
    def lose_what_is_remembered(self, what: str) -> None:
        state = self.shop.folder / "state"
        if what == "all":
            shutil.rmtree(state, ignore_errors=True)
        for path in list(state.rglob("*")) if state.exists() else []:
            if path.is_file() and what == "rubbish":
                path.write_bytes(b"{" + path.read_bytes()[100:])
            elif path.is_file() and path.suffix == ".sqlite":
                path.unlink()

    # The outputs.

    @precondition(lambda self: self.shop.shards())
    @rule(pick=PICKS, deleted=st.booleans())
    def spoil_a_shard(self, pick: int, deleted: bool) -> None:
        shards = self.shop.shards()
        shard = shards[pick % len(shards)]
        if deleted:
            shard.unlink()
        else:
            flip(shard, shard.stat().st_size - 1 - pick % 60, 4)

    @rule(everything=st.booleans())
    def delete_outputs(self, everything: bool) -> None:
        folders = sorted({path.parent for path in self.shop.shards()})
        for folder in folders if everything else folders[:1]:
            shutil.rmtree(folder)

    @precondition(lambda self: self.shop.shards())
    @rule()
    def delete_a_lock(self) -> None:
        """What is there is no longer known to be ours: it is refused and left alone."""
        folder = self.shop.shards()[0].parent
        (folder / "mergeflow.lock.json").unlink()
        before = self.shop.found()
        with pytest.raises((OutputError, mergeflow.errors.RecipeError), match="did not write"):
            self.run()
        assert self.shop.found() == before
        shutil.rmtree(folder)

    @precondition(lambda self: self.shop.shards())
    @rule(pick=PICKS)
    def edit_the_small_files(self, pick: int) -> None:
        folder = self.shop.shards()[0].parent
        files = sorted(path for path in folder.glob("*.json") if "lock" not in path.name)
        files[pick % len(files)].write_text("{}")

    @rule(
        name=numbers, value=values, seed=st.integers(0, 2), events=st.lists(st.integers(0, 60), min_size=1, max_size=3)
    )
    def interrupt_runs(self, name: str, value: Value, seed: int, events: list[int]) -> None:
        """Runs of an edited recipe end in the middle: the outputs are those of before, or a run was faster."""
        self.wording = replace(self.wording.with_number(name, value), seed=seed)
        before = self.shop.found()
        self.write_recipe()
        for event in events:
            left = iter(range(event))

            def listen(_: Event, left: Iterator[int] = left) -> None:
                if next(left, None) is None:
                    raise Interrupted

            try:
                self.run(listen)
            except Interrupted:
                assert self.shop.found() in (before, self.expected())
            else:
                break

    @rule(names=st.sets(st.sampled_from(["model.safetensors.1234abcd.partial", "journal.jsonl", "next", "scratch-1"])))
    def leave_rubbish_beside_an_output(self, names: set[str]) -> None:
        """What a killed run may leave: a lock that nobody holds, a cut journal, shards that no journal names."""
        folders = sorted({path.parent for path in self.shop.shards()}) or [self.shop.made]
        staging = folders[0].parent / f".{folders[0].name}.mergeflow"
        staging.mkdir(parents=True, exist_ok=True)
        (staging / "lock").touch()
        for name in names:
            if name == "next":
                (staging / name).mkdir()
                (staging / name / "model.safetensors").write_bytes(b"half")
            else:
                (staging / name).write_bytes(b'{"file": "model.safetensors", "key": "')


settings_here = settings(
    max_examples=5,
    stateful_step_count=35,
    deadline=None,
    derandomize=True,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
TestEdits = Edits.TestCase
TestEdits.settings = settings_here
