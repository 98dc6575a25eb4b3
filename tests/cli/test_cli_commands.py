"""Every command as a person or a script types it: what it prints, where, and its exit code."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from command_line import everything, mergeflow, write
from tiny_checkpoints import raw_bytes, read_model

RECIPE = """
mergeflow: 1
models: {a: ./a, b: ./b, c: ./c}
vars: {t: 0.5}
steps:
  skill:
    task_vector: {model: b, base: a}
  skilled:
    merge_method: ties
    base_model: a
    models:
      - {model: skill, parameters: {weight: 0.6, density: 0.5}}
      - {model: c, parameters: {weight: 0.4, density: 0.25}}
  final:
    merge_method: slerp
    base_model: a
    models: [{model: skilled}]
    parameters: {t: "${t}"}
"""
LINEAR = """
mergeflow: 1
models: {a: ./a, b: ./b}
steps:
  soup:
    merge_method: linear
    models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 3}}]
"""
DOUBTFUL = """
merge_method: linear
models:
  - {model: ./a, parameters: {weight: 1}}
  - {model: ./b, parameters: {weight: 3}}
parameters: {normalise: true}
"""

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def recipe() -> str:
    return write(RECIPE)


class TestValidate:
    def test_a_valid_recipe_is_said_to_be_so(self, recipe: str) -> None:
        """One line on stdout, with what the recipe makes; nothing on stderr; exit code 0."""
        done = mergeflow("validate", recipe)
        assert (done.code, done.err) == (0, "")
        assert done.out == "recipe.yaml is valid: 3 steps, makes final (9 tensors)\n"

    def test_nothing_is_written(self, recipe: str, workplace: Path) -> None:
        """Neither an output nor a cache nor a memory."""
        before = everything(workplace)
        mergeflow("validate", recipe)
        assert everything(workplace) == before
        assert not (workplace / "cache").exists()
        assert not (workplace / "home").exists()

    def test_problems_go_to_stderr_with_their_places(self) -> None:
        """file:line:column, severity, path and message; exit code 1; stdout stays empty."""
        done = mergeflow("validate", write(LINEAR.replace("linear", "liner")))
        place = "recipe.yaml:5:19: error: steps.soup.merge_method: "
        assert (done.code, done.out) == (1, "")
        assert done.err == place + "there is no merge method 'liner'; did you mean 'linear'?\n"

    def test_json_has_the_same_problems(self) -> None:
        """One object on stdout, complete, whatever stderr says."""
        done = mergeflow("validate", write(LINEAR.replace("linear", "liner")), "--json")
        assert done.code == 1
        (problem,) = json.loads(done.out)["problems"]
        assert (problem["file"], problem["line"], problem["column"]) == ("recipe.yaml", 5, 19)
        assert (problem["severity"], problem["path"]) == ("error", "steps.soup.merge_method")
        assert problem["message"] == "there is no merge method 'liner'; did you mean 'linear'?"

    def test_json_of_a_valid_recipe_is_an_empty_list(self, recipe: str) -> None:
        """A script need not know two shapes."""
        done = mergeflow("validate", recipe, "--json")
        assert (done.code, json.loads(done.out)) == (0, {"problems": []})

    def test_warnings_do_not_fail(self) -> None:
        """What mergekit ignores is said on stderr, and the file is valid."""
        done = mergeflow("validate", write(DOUBTFUL))
        assert done.code == 0
        assert done.lines == [
            "recipe.yaml:5:25: warning: parameters.normalise: "
            "linear has no parameter 'normalise'; did you mean 'normalize'?"
        ]
        assert "is valid" in done.out

    @pytest.mark.parametrize("command", ["validate", "plan", "run"])
    def test_strict_makes_errors_of_warnings(self, command: str, workplace: Path) -> None:
        """--strict: the same message as an error, exit code 1."""
        path = write(DOUBTFUL)
        before = everything(workplace)
        done = mergeflow(command, path, *(["out"] if command != "validate" else []), "--strict")
        assert (done.code, done.out) == (1, "")
        assert done.lines == [
            "recipe.yaml:5:25: error: parameters.normalise: "
            "linear has no parameter 'normalise'; did you mean 'normalize'?"
        ]
        assert everything(workplace) == before

    def test_a_variable_is_given_another_value(self, recipe: str) -> None:
        """--set is part of what is validated: a value out of range is found where it is used."""
        path = write(RECIPE.replace("density: 0.25", 'density: "${t}"'))
        assert mergeflow("validate", path, "--set", "t=0.7").code == 0
        done = mergeflow("validate", path, "--set", "t=1.5")
        assert done.code == 1
        assert done.lines == [
            "recipe.yaml:12:55: error: steps.skilled.models[1].parameters.density: "
            "density must be between 0 and 1, not 1.5"
        ]


class TestPlan:
    def test_a_row_for_each_step(self, recipe: str) -> None:
        """Names and methods are whole, however narrow the screen is thought to be."""
        done = mergeflow("plan", recipe, "out")
        assert (done.code, done.err) == (0, "")
        rows = [line.split()[:4] for line in done.out.splitlines()[1:4]]
        assert rows == [["skill", "task_vector", "9", "9"], ["skilled", "ties", "9", "9"], ["final", "slerp", "9", "9"]]
        assert "output final -> out: 9 tensors, 9 to compute, 0 from the cache, 0 kept" in done.out
        assert "peak memory at most" in done.out

    def test_an_output_needs_no_folder_to_be_planned(self, recipe: str) -> None:
        """What a run would cost is known before anybody decides where it goes."""
        done = mergeflow("plan", recipe)
        assert (done.code, done.err) == (0, "")

    def test_nothing_is_written_and_no_weights_are_read(
        self, recipe: str, workplace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A plan of models that were never read says so, instead of reading them."""
        monkeypatch.setattr("mergeflow.models.digests.hash_batch", None)
        before = everything(workplace)
        done = mergeflow("plan", recipe, "out")
        assert "not read on this machine yet: 27 input tensors" in done.out
        assert everything(workplace) == before

    def test_json(self, recipe: str) -> None:
        """Steps with counts and reasons, outputs with paths, bytes, peak memory."""
        plan = json.loads(mergeflow("plan", recipe, "out", "--json").out)
        assert [step["step"] for step in plan["steps"]] == ["skill", "skilled", "final"]
        assert plan["steps"][1]["statistics"] == {"needed": 18, "known": 0}
        assert plan["steps"][1]["why"] == ["first run of this recipe on this machine"]
        assert plan["outputs"][0]["path"] == "out"
        assert plan["outputs"][0]["tensors"] == {"total": 9, "computed": 9, "cached": 0, "kept": 0}
        assert plan["outputs"][0]["bytes_written"] > 0
        assert plan["bytes"]["read"] > 0
        assert plan["peak_memory_bytes"] > 0

    def test_after_a_run_nothing_is_left_to_do(self, recipe: str) -> None:
        """The same recipe and output: every tensor kept, no byte read or written."""
        mergeflow("run", recipe, "out")
        plan = json.loads(mergeflow("plan", recipe, "out", "--json").out)
        assert plan["outputs"][0]["tensors"] == {"total": 9, "computed": 0, "cached": 0, "kept": 9}
        assert (plan["bytes"]["read"], plan["bytes"]["written"], plan["tasks"]) == (0, 0, 0)

    def test_a_change_is_explained(self, recipe: str) -> None:
        """Another t: the step whose setting changed says which and how, and no threshold is needed again."""
        mergeflow("run", recipe, "out")
        plan = json.loads(mergeflow("plan", recipe, "out", "--set", "t=0.25", "--json").out)
        steps = {step["step"]: step for step in plan["steps"]}
        assert steps["final"]["why"] == ["final.parameters.t 0.5 -> 0.25 (9 tensors)"]
        assert steps["skilled"]["statistics"]["needed"] == steps["skilled"]["statistics"]["known"] == 18
        assert plan["outputs"][0]["tensors"]["computed"] == 9


class TestRun:
    def test_a_model_is_made(self, recipe: str) -> None:
        """The output holds every tensor; stdout says where it is, what was computed and what it cost."""
        done = mergeflow("run", recipe, "out")
        assert (done.code, done.err) == (0, "")
        assert done.out.startswith(
            f"final -> {Path('out').absolute()}\n9 tensors: 9 computed, 0 from the cache, 0 kept"
        )
        assert read_model(Path("out")).keys() == read_model(Path("a")).keys()

    def test_the_recipe_names_the_folder(self, workplace: Path) -> None:
        """Without OUT, the recipe's own, which starts at the recipe's folder and not at the current one."""
        folder = workplace / "elsewhere"
        folder.mkdir()
        text = LINEAR.replace("./a", "../a").replace("./b", "../b") + "outputs:\n  soup: ./out\n"
        done = mergeflow("run", write(text, "elsewhere/recipe.yaml"))
        assert (done.code, done.err) == (0, "")
        assert (folder / "out" / "model.safetensors").exists()

    def test_quiet_prints_nothing(self, recipe: str) -> None:
        """Neither on stdout nor on stderr."""
        done = mergeflow("run", recipe, "out", "--quiet")
        assert (done.code, done.out, done.err) == (0, "", "")
        assert Path("out/model.safetensors").exists()

    def test_quiet_still_warns(self) -> None:
        """A warning is not chatter."""
        done = mergeflow("run", write(DOUBTFUL), "out", "-q")
        assert (done.code, done.out) == (0, "")
        assert done.lines == [
            "recipe.yaml:5:25: warning: parameters.normalise: "
            "linear has no parameter 'normalise'; did you mean 'normalize'?"
        ]

    def test_a_second_run_keeps_everything(self, recipe: str) -> None:
        """Nothing changed: nothing computed, not a byte of the output touched."""
        mergeflow("run", recipe, "out")
        before = raw_bytes(Path("out"))
        done = mergeflow("run", recipe, "out")
        assert "9 tensors: 0 computed, 0 from the cache, 9 kept as they were" in done.out
        assert raw_bytes(Path("out")) == before

    def test_set_changes_the_result(self) -> None:
        """--set weight=... gives what the formula says, and the card and lock say which value it was."""
        path = write(LINEAR.replace("weight: 3", 'weight: "${w}"') + "vars: {w: 3}\n")
        mergeflow("run", path, "out", "--set", "w=1")
        a, b, made = (read_model(Path(folder)) for folder in ("a", "b", "out"))
        for name, tensor in made.items():
            torch.testing.assert_close(tensor, (a[name] + b[name]) / 2)
        assert json.loads(Path("out/mergeflow.lock.json").read_text())["variables"] == {"w": 1}

    def test_report_has_what_the_design_promises(self, recipe: str) -> None:
        """Counts, bytes, seconds, memory, a key for each tensor, outputs, warnings; and it is valid JSON."""
        done = mergeflow("run", recipe, "out", "--report", "report.json")
        assert done.code == 0
        report = json.loads(Path("report.json").read_text())
        assert report["tensors"] == {"total": 9, "computed": 9, "cached": 0, "kept": 0}
        assert {"read", "written", "cache_read", "cache_written"} <= report["bytes"].keys()
        assert report["bytes"]["written"] > 0
        assert report["seconds"] > 0
        assert report["peak_rss_bytes"] > 1 << 20
        assert report["keys"].keys() == read_model(Path("out")).keys()
        assert all(re.fullmatch("[0-9a-f]{64}", key) for key in report["keys"].values())
        assert [output["path"] for output in report["outputs"]] == [str(Path("out").absolute())]
        assert report["warnings"] == []

    def test_report_of_a_second_run(self, recipe: str) -> None:
        """The same keys; all tensors kept, no byte of a weight read."""
        mergeflow("run", recipe, "out", "--report", "first.json")
        mergeflow("run", recipe, "out", "--report", "second.json")
        first, second = (json.loads(Path(name).read_text()) for name in ("first.json", "second.json"))
        assert second["tensors"] == {"total": 9, "computed": 0, "cached": 0, "kept": 9}
        assert second["keys"] == first["keys"]
        assert (second["bytes"]["read"], second["bytes"]["written"]) == (0, 0)

    def test_report_has_the_warnings(self) -> None:
        """A warning about the recipe is part of the record."""
        mergeflow("run", write(DOUBTFUL), "out", "--report", "report.json")
        (warning,) = json.loads(Path("report.json").read_text())["warnings"]
        assert "normalise" in warning

    def test_report_may_lie_in_a_folder_that_is_not_there_yet(self, recipe: str) -> None:
        """The output's own folder, say; it is made when it is needed."""
        assert mergeflow("run", recipe, "out", "--report", "out/notes/report.json").code == 0
        assert json.loads(Path("out/notes/report.json").read_text())["tensors"]["total"] == 9

    @pytest.mark.parametrize(("place", "message"), [("a", "is a folder"), ("file/report.json", "is not a folder")])
    def test_a_report_that_cannot_be_written_is_said_before_the_run(
        self, recipe: str, workplace: Path, place: str, message: str
    ) -> None:
        """Nobody waits an hour to hear that a path was wrong."""
        (workplace / "file").write_text("mine")
        before = everything(workplace)
        done = mergeflow("run", recipe, "out", "--report", place)
        assert (done.code, done.out) == (1, "")
        assert message in done.err
        assert everything(workplace) == before

    def test_several_outputs_get_a_folder_each(self) -> None:
        """OUT is then the folder that holds them, and a tensor of the report is called by its step too."""
        text = LINEAR + LINEAR[LINEAR.index("  soup:") :].replace("soup", "other").replace("weight: 3", "weight: 1")
        done = mergeflow("run", write(text), "out", "--report", "report.json")
        assert done.code == 0
        assert sorted(path.name for path in Path("out").iterdir()) == ["other", "soup"]
        keys = json.loads(Path("report.json").read_text())["keys"]
        assert keys["soup/lm_head.weight"] != keys["other/lm_head.weight"]

    def test_a_mergekit_file_runs(self) -> None:
        """Paths from the current folder, as mergekit reads them; the output on the command line."""
        text = "merge_method: passthrough\nmodels: [{model: ./a, parameters: {scale: 2}}]\n"
        done = mergeflow("run", write(text), "out")
        assert (done.code, done.err) == (0, "")
        assert torch.equal(read_model(Path("out"))["lm_head.weight"], 2 * read_model(Path("a"))["lm_head.weight"])

    def test_without_a_cache_nothing_is_cached(self, recipe: str, workplace: Path) -> None:
        """--no-cache leaves no folder behind."""
        assert mergeflow("run", recipe, "out", "--no-cache").code == 0
        assert not (workplace / "cache").exists()

    def test_the_cache_is_where_it_is_told_to_be(self, recipe: str, workplace: Path) -> None:
        """--cache DIR wins over the environment."""
        assert mergeflow("run", recipe, "out", "--cache", "mine").code == 0
        assert (workplace / "mine" / "v1").is_dir()
        assert not (workplace / "cache").exists()

    def test_new_infinities_are_an_error(self, workplace: Path) -> None:
        """A format too small for the values: exit code 3, nothing written, and the message says where to look."""
        path = write(
            LINEAR.replace("weight: 3", "weight: 3.0e+30") + "    parameters: {normalize: false}\n    dtype: float16\n"
        )
        before = everything(workplace)
        done = mergeflow("run", path, "out")
        assert (done.code, done.out) == (3, "")
        assert re.search(r"error: \S+ has a NaN or infinity .* look at the parameters and dtype of step soup", done.err)
        assert everything(workplace) == before

    def test_new_infinities_can_be_allowed(self) -> None:
        """--allow-nonfinite makes warnings of them."""
        path = write(
            LINEAR.replace("weight: 3", "weight: 3.0e+30") + "    parameters: {normalize: false}\n    dtype: float16\n"
        )
        done = mergeflow("run", path, "out", "--allow-nonfinite")
        assert done.code == 0
        assert all(line.startswith("warning: ") for line in done.lines)
        assert len(done.lines) == 9


class TestExplain:
    def test_a_tensor_with_its_formula_and_parameters(self, recipe: str) -> None:
        """The whole chain in one line; then each step, first step first, with what its parameters are for this tensor."""
        done = mergeflow("explain", recipe, "--tensor", "model.norm.*")
        assert (done.code, done.err) == (0, "")
        assert done.out.splitlines() == [
            "model.norm.weight: slerp(a, a + ties(0.6 (b - a), 0.4 (c - a); density=[0.5, 0.25]); t=0.5)",
            "  float32 [16], to compute",
            "  skill = task_vector(b, a)",
            "    unknown",
            "    why: first run of this recipe on this machine",
            "  skilled = add(a, consensus(trim(skill; k=8), trim(task_vector(c, a); k=4); "
            "weights=[0.6, 0.4], normalize=true, lambda=1))",
            "    unknown; 0 of 2 statistics known; normalize=true, rescale=false, lambda=1, election=weighted, "
            "int8_mask=false; "
            "skill: weight=0.6, density=0.5; c: weight=0.4, density=0.25",
            "    why: first run of this recipe on this machine",
            "    kth_magnitude(skill; k=8) to compute: first run of this recipe on this machine",
            "    kth_magnitude(task_vector(c, a); k=4) to compute: first run of this recipe on this machine",
            "  final = slerp(a, skilled; t=0.5)",
            "    unknown; 0 of 1 statistics known; t=0.5",
            "    why: first run of this recipe on this machine",
            "    gram(a, skilled) to compute: first run of this recipe on this machine",
        ]

    def test_what_need_not_run_says_so(self, recipe: str) -> None:
        """A tensor that is in OUT is kept there, and none of its steps has a reason to run."""
        mergeflow("run", recipe, "out")
        (found,) = json.loads(mergeflow("explain", recipe, "out", "--tensor", "model.norm.*", "--json").out)
        assert found["state"] == "kept in out"
        assert [(step["state"], step["why"], step["missing"]) for step in found["steps"]] == [
            ("not needed", [], [])
        ] * 3

    def test_what_must_run_says_why(self, recipe: str) -> None:
        """The number that changed, at the step where it stands; what is needed again, because nobody kept it."""
        mergeflow("run", recipe, "out")
        asked = ("explain", recipe, "out", "--tensor", "model.norm.*", "--set", "t=0.25", "--json")
        (found,) = json.loads(mergeflow(*asked).out)
        why = {step["step"]: step["why"] for step in found["steps"]}
        assert why["final"] == ["final.parameters.t 0.5 -> 0.25"]
        assert why["skilled"] == ["final needs it: only its statistics were kept"]
        assert found["state"] == "to compute"

    def test_a_gradient_resolves_for_each_layer(self) -> None:
        """What a filter or a gradient makes of a parameter is printed, tensor by tensor."""
        text = RECIPE.replace('{t: "${t}"}', "{t: [{filter: mlp, value: [0.25, 0.75]}, {value: 0.125}]}").replace(
            "vars: {t: 0.5}\n", ""
        )
        found = json.loads(mergeflow("explain", write(text), "--tensor", "*layers*", "--json").out)
        t = {tensor["name"].removeprefix("model.layers."): tensor["steps"][-1]["shared"]["t"] for tensor in found}
        assert t == {
            "0.input_layernorm.weight": 0.125,
            "0.mlp.down_proj.weight": 0.25,
            "0.self_attn.q_proj.weight": 0.125,
            "1.input_layernorm.weight": 0.125,
            "1.mlp.down_proj.weight": 0.75,
            "1.self_attn.q_proj.weight": 0.125,
        }

    def test_json(self, recipe: str) -> None:
        """Every tensor of the output, with dtype, shape, key and steps."""
        found = json.loads(mergeflow("explain", recipe, "--json").out)
        assert {tensor["name"] for tensor in found} == read_model(Path("a")).keys()
        assert {"output", "name", "dtype", "shape", "key", "steps"} <= found[0].keys()
        assert [step["step"] for step in found[0]["steps"]] == ["skill", "skilled", "final"]

    def test_a_name_that_no_tensor_has(self, recipe: str) -> None:
        """Exit code 1 and the nearest name."""
        done = mergeflow("explain", recipe, "--tensor", "model.nrom.weight")
        assert (done.code, done.out) == (1, "")
        assert done.err == (
            "error: no output tensor is called 'model.nrom.weight'; did you mean 'model.norm.weight'?\n"
        )


class TestCache:
    def test_ls_lists_every_entry(self, recipe: str) -> None:
        """Key, kind, operation, size and last use, a line each; as JSON, an object per line."""
        mergeflow("run", recipe, "out")
        lines = mergeflow("cache", "ls").out.splitlines()
        assert len(lines) == 27
        form = re.compile(r"[0-9a-f]{64}  (record|tensor)\s+\w+\s+[\d.]+ k?B  \d{4}-\d\d-\d\d \d\d:\d\d")
        assert all(form.fullmatch(line) for line in lines)
        entries = [json.loads(line) for line in mergeflow("cache", "ls", "--json").out.splitlines()]
        assert [entry["key"] for entry in entries] == [line[:64] for line in lines]
        assert {entry["op"] for entry in entries} == {"kth_magnitude", "gram"}

    def test_du_counts(self, recipe: str, workplace: Path) -> None:
        """Where it is, how many entries of each kind, and their bytes."""
        mergeflow("run", recipe, "out")
        assert mergeflow("cache", "du").out.splitlines()[:2] == [str(workplace / "cache"), "0 tensors, 0 B"]
        used = json.loads(mergeflow("cache", "du", "--json").out)
        assert (used["records"], used["tensors"], used["damaged"]) == (27, 0, 0)
        assert used["record_bytes"] > 0

    def test_clear_empties_it(self, recipe: str) -> None:
        """--yes does not ask; afterwards nothing is there, and a run computes again."""
        mergeflow("run", recipe, "out")
        done = mergeflow("cache", "clear", "--yes")
        assert done.code == 0
        assert done.out.startswith("removed 27 entries, ")
        assert mergeflow("cache", "ls").out == ""

    def test_clear_asks(self, recipe: str) -> None:
        """`y` removes; anything else leaves all as it was, exit code 1."""
        mergeflow("run", recipe, "out")
        assert mergeflow("cache", "clear", answer="n\n").code == 1
        assert len(mergeflow("cache", "ls").out.splitlines()) == 27
        assert mergeflow("cache", "clear", answer="y\n").code == 0
        assert mergeflow("cache", "ls").out == ""

    def test_an_empty_cache_is_no_error(self, workplace: Path) -> None:
        """ls, du and clear of a cache that was never used: zeros, no question, and no folder made."""
        assert mergeflow("cache", "ls").out == ""
        assert "0 tensors, 0 B" in mergeflow("cache", "du").out
        assert mergeflow("cache", "clear").out == "removed 0 entries, 0 B\n"
        assert not (workplace / "cache").exists()

    def test_clear_leaves_a_folder_that_is_no_cache(self, workplace: Path) -> None:
        """A path that was mistyped costs nobody his files."""
        (workplace / "work" / "v1" / "ab").mkdir(parents=True)
        (workplace / "work" / "v1" / "ab" / "thesis.txt").write_text("years")
        before = everything(workplace)
        done = mergeflow("cache", "clear", "--cache", "work", "--yes")
        assert done.code == 1
        assert "is not a mergeflow cache" in done.err
        assert everything(workplace) == before
