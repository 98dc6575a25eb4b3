"""Explanations: the formula of the whole chain, and why what must run must run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from textwrap import dedent

import pytest
import yaml
from safetensors.torch import load_file, save_file
from test_vocabularies import model
from three_models import settle
from tiny_checkpoints import llama
from torch import Tensor
from trained_tokenizers import GERMAN
from typer.testing import CliRunner

import mergeflow
from mergeflow.cli.main import app
from mergeflow.errors import OutputError
from mergeflow.execute.events import ignore
from mergeflow.graph.plan import StepPlan
from mergeflow.methods.schema import Method
from mergeflow.methods.table import METHODS
from mergeflow.recipe.fields import OPERATIONS
from mergeflow.workflow.explaining import StepExplanation, TensorExplanation, explain_recipe

NAMES = ("base", "math", "chat", "code")
NORM, UP = "model.norm.weight", "model.layers.1.mlp.down_proj.weight"
GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four small models under models/, of two files each."""
    for seed, name in enumerate(NAMES):
        llama(tmp_path / "models" / name, seed, shards=2)
    settle()
    return tmp_path


def explained(folder: Path, text: str, name: str = NORM, **wishes: object) -> TensorExplanation:
    """One tensor of the recipe `text`."""
    path = folder / "recipe.yaml"
    path.write_text(dedent(text))
    (found,) = explain_recipe(mergeflow.load(path), name, mergeflow.Options(**wishes), ignore)  # type: ignore[arg-type]
    return found


def formula(folder: Path, text: str, name: str = NORM) -> str:
    return explained(folder, text, name).formula


HEAD = """\
mergeflow: 1
models: {base: ./models/base, math: ./models/math, chat: ./models/chat, code: ./models/code}
"""


def native(steps: str) -> str:
    """A recipe whose last step is written."""
    return HEAD + "steps:\n" + dedent(steps).replace("\n", "\n  ").rstrip(" ").join(["  ", ""]) + "\n"


class TestFormulas:
    def test_the_chain_of_the_issue(self, folder: Path) -> None:
        """Task vectors, TIES on its base, slerp with another model: as one would write it on paper."""
        text = native("""\
            math_skill: {task_vector: {model: math, base: base}}
            skills:
              merge_method: ties
              base_model: base
              models:
                - {model: math_skill, parameters: {weight: 0.6}}
                - {model: code, parameters: {weight: 0.4}}
              parameters: {density: 0.6}
            final: {merge_method: slerp, base_model: chat, models: [{model: skills}], parameters: {t: 0.25}}
            """)
        assert formula(folder, text) == (
            "slerp(chat, base + ties(0.6 (math - base), 0.4 (code - base); density=0.6); t=0.25)"
        )

    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ("{merge_method: linear, models: [{model: math}, {model: code}], parameters: {weight: 3}}", "0.5 math + 0.5 code"),
            (
                "{merge_method: task_arithmetic, base_model: base, parameters: {lambda: 0.5}, models: "
                "[{model: math, parameters: {weight: 1}}, {model: code, parameters: {weight: -0.5}}]}",
                "base + 0.5 (math - base) - 0.25 (code - base)",
            ),
            (
                "{merge_method: add_difference, base_model: chat, models: [{model: math}, {model: base}], "
                "parameters: {alpha: 0.7}}",
                "chat + 0.7 (math - base)",
            ),
            ("{merge_method: passthrough, models: [{model: math, parameters: {scale: 2}}]}", "2 math"),
            ("{merge_method: passthrough, models: [{model: math}], dtype: bfloat16}", "bfloat16(math)"),
            (
                "{merge_method: nuslerp, base_model: base, models: [{model: math, parameters: {weight: 1}}, "
                "{model: code, parameters: {weight: 3}}]}",
                "base + nuslerp(math - base, code - base; weight=[1, 3])",
            ),
            (
                "{merge_method: nuslerp, models: [{model: math, parameters: {weight: 1}}, "
                "{model: code, parameters: {weight: 3}}]}",
                "nuslerp(math, code; weight=[1, 3])",
            ),
            ("{merge_method: slerp, base_model: chat, models: [{model: math}], parameters: {t: 0}}", "chat"),
            (
                "{merge_method: ties, base_model: base, parameters: {density: 0.5}, models: "
                "[{model: math, parameters: {weight: 1}}, {model: code, parameters: {weight: 0}}]}",
                "base + ties(math - base; density=0.5)",
            ),
        ],
    )  # fmt: skip
    def test_single_steps(self, folder: Path, steps: str, expected: str) -> None:
        """Sums are sums, with the factors that they resolve to; what takes no part is not shown."""
        assert formula(folder, native(f"final: {steps}\n")) == expected

    @pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())
    def test_every_method(self, folder: Path, method: Method) -> None:
        """The example of each names every model that takes part, and the method, unless it is a sum."""
        body = yaml.safe_load(method.example.replace("rank: 32", "rank: 2"))
        if method.name in OPERATIONS and "task_vector" not in body:
            skill = "math_skill: {task_vector: {model: math, base: base}}\n"
            step = yaml.safe_dump({"delta": body}, default_flow_style=True, width=10_000)[1:-2]
            add = (
                "final: {merge_method: task_arithmetic, base_model: base, "
                "models: [{model: delta, parameters: {weight: 1}}]}\n"
            )
            text, expected = native(skill + step + "\n" + add), {"math", "base"}
        elif method.name == "task_vector":
            text, expected = (
                native("final: {merge_method: linear, models: [{model: math, parameters: {weight: 1}}]}\n"),
                set(),
            )
        else:
            text = method.example.replace("[0, 0.5, 1]", "0.5")
            listed = [*(it["model"] for it in body["models"]), *([body["base_model"]] if "base_model" in body else [])]
            expected = {str(it) for it in listed}
        found = formula(folder, text, UP)
        assert all(name in found for name in expected)
        sums = ("linear", "arithmetic", "task_arithmetic", "add_difference", "passthrough", "scale", "task_vector")
        assert (f"{method.name}(" in found) == (method.name not in sums)

    def test_slices(self, folder: Path) -> None:
        """A layer that comes from another says which; what all layers share has nothing to say."""
        text = """\
            slices:
              - sources: [{model: ./models/base, layer_range: [0, 2]}]
              - sources: [{model: ./models/math, layer_range: [0, 1]}, {model: ./models/base, layer_range: [1, 2]}]
            merge_method: linear
            parameters: {weight: 0.5}
            """
        assert formula(folder, text, UP) == "./models/base"
        assert formula(folder, text, "model.layers.2.mlp.down_proj.weight") == (
            "0.5 ./models/math:layers.0 + 0.5 ./models/base:layers.1"
        )

    def test_own_methods(self, folder: Path) -> None:
        """By their own name, the base last, as their function takes them."""

        def lean(tensors: list[Tensor], base: Tensor, t: float = 0.5) -> Tensor:
            return base + t * (tensors[0] - base)

        lean.__qualname__ = "lean"
        mergeflow.merge_method(lean)
        text = native("final: {merge_method: lean, base_model: base, models: [{model: math}], parameters: {t: 0.3}}\n")
        assert formula(folder, text) == "lean(math, base; t=0.3)"

    def test_adapters(self, tmp_path: Path) -> None:
        """A model with an adapter is one model, by its name; an adapter alone is a delta."""
        base, adapter = GOLDEN / "bases" / "llama", GOLDEN / "plain" / "adapter"
        text = f"""\
            mergeflow: 1
            models: {{base: {base}, tuned: {base}+{adapter}}}
            steps:
              alone: {{task_vector: {{adapter: {adapter}}}}}
              final:
                merge_method: task_arithmetic
                base_model: base
                models: [{{model: tuned, parameters: {{weight: 0.5}}}}, {{model: alone, parameters: {{weight: 0.25}}}}]
            """
        path = tmp_path / "recipe.yaml"
        path.write_text(dedent(text))
        found = {it.formula for it in explain_recipe(mergeflow.load(path), "*", mergeflow.Options(), ignore)}
        # A tensor that the adapter leaves alone, and one that it changes.
        assert found == {"base + 0.5 (tuned - base)", f"base + 0.5 (tuned - base) + 0.25 +{adapter}"}

    def test_a_chain_that_doubles(self, folder: Path) -> None:
        """Each step reads the last one twice: from some length on, steps stand for themselves."""
        lines = ["s0: {merge_method: linear, models: [{model: math}], parameters: {weight: 1}}"]
        lines += ["t0: {merge_method: linear, models: [{model: base}], parameters: {weight: 1}}"]
        for i in range(1, 40):
            both = [
                f"{{model: s{i - 1}, parameters: {{weight: 1}}}}",
                f"{{model: t{i - 1}, parameters: {{weight: 2}}}}",
            ]
            lines.append(f"s{i}: {{merge_method: nuslerp, models: [{', '.join(both)}]}}")
            lines.append(f"t{i}: {{merge_method: nuslerp, models: [{', '.join(reversed(both))}]}}")
        lines.append("last: {merge_method: nuslerp, models: [{model: s39}, {model: t39}], parameters: {weight: 1}}")
        found = formula(folder, native("\n".join(lines) + "\n"))
        assert len(found) < 3000
        assert re.search(r"s\d+", found)


CHAIN = native("""\
    math_skill: {task_vector: {model: math, base: base}}
    skills:
      merge_method: ties
      base_model: base
      models:
        - {model: math_skill, parameters: {weight: 0.6, density: 0.5}}
        - {model: code, parameters: {weight: 0.4, density: 0.5}}
    final: {merge_method: slerp, base_model: chat, models: [{model: skills}], parameters: {t: 0.25}}
    """)


def run(folder: Path, text: str = CHAIN, **wishes: object) -> None:
    (folder / "recipe.yaml").write_text(text)
    mergeflow.run(folder / "recipe.yaml", folder / "out", options=mergeflow.Options(**wishes))  # type: ignore[arg-type]


def step(folder: Path, name: str, text: str = CHAIN, tensor: str = NORM, **wishes: object) -> StepExplanation:
    """One step of one tensor, explained against `folder`/out."""
    path = folder / "recipe.yaml"
    path.write_text(text)
    options = mergeflow.Options(**wishes)  # type: ignore[arg-type]
    (found,) = explain_recipe(mergeflow.load(path), tensor, options, ignore, folder / "out")
    return next(it for it in found.steps if it.step == name)


def planned(folder: Path, name: str, text: str = CHAIN) -> StepPlan:
    (folder / "recipe.yaml").write_text(text)
    plan = mergeflow.plan(folder / "recipe.yaml", folder / "out")
    return next(it for it in plan.steps if it.name == name)


def documented() -> tuple[str, str, list[str]]:
    """The example of docs/cache.md: its recipe, its command, and what that prints."""
    page = (Path(__file__).parents[2] / "docs" / "cache.md").read_text(encoding="utf-8")
    section = page[page.index("## Why did it run?") :]
    recipe, console = (
        re.search(rf"```{kind}\n(.*?)```", section, re.DOTALL)[1]  # type: ignore[index]
        for kind in ("yaml", "console")
    )
    command, *printed = console.splitlines()
    return recipe, command.removeprefix("$ mergeflow "), printed


def test_the_page_shows_what_is_printed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example of docs/cache.md, run as the page says."""
    recipe, command, printed = documented()
    run(folder, recipe)
    monkeypatch.chdir(folder)
    changed = recipe.replace("weight: 0.6, density: 0.5", "weight: 0.6, density: 0.4")
    (folder / "recipe.yaml").write_text(changed)
    done = CliRunner().invoke(app, command.split(), catch_exceptions=False)
    assert done.stdout.splitlines() == printed


class TestVocabulary:
    def test_rows_in_another_order(self, tmp_path: Path) -> None:
        """Embeddings that are put in order say so; another vocabulary is a reason for them, and for nothing else."""
        model(tmp_path / "a", 1)
        model(tmp_path / "b", 2, words=GERMAN)
        settle()
        text = "".join(
            [
                "merge_method: linear\n",
                f"base_model: {tmp_path}/a\n",
                f"models: [{{model: {tmp_path}/a}}, {{model: {tmp_path}/b}}]\n",
                "parameters: {weight: 1}\n",
                "tokenizer_source: union\n",
            ]
        )
        run(tmp_path, text)
        found = explained(tmp_path, text, "model.embed_tokens.weight")
        assert found.formula == f"0.5 vocabulary({tmp_path}/a) + 0.5 vocabulary({tmp_path}/b)"
        assert formula(tmp_path, text) == f"0.5 {tmp_path}/a + 0.5 {tmp_path}/b"
        (tmp_path / "recipe.yaml").write_text(text.replace("union", "base"))
        (step,) = mergeflow.plan(tmp_path / "recipe.yaml", tmp_path / "out").steps
        assert step.why == ("tokenizer_source union -> base (2 tensors)",)


class TestWhy:
    def test_a_parameter(self, folder: Path) -> None:
        """The issue's words, at the step and at those behind it, per tensor and summed up."""
        run(folder)
        text = CHAIN.replace("weight: 0.6, density: 0.5", "weight: 0.6, density: 0.4")
        assert step(folder, "skills", text).why == ("skills.models[0].parameters.density 0.5 -> 0.4",)
        assert planned(folder, "skills", text).why == ("skills.models[0].parameters.density 0.5 -> 0.4 (9 tensors)",)
        assert planned(folder, "final", text).why == (
            "because skills changed: skills.models[0].parameters.density 0.5 -> 0.4 (9 tensors)",
        )

    def test_statistics(self, folder: Path) -> None:
        """Those of the model whose density changed are missing; those of the other are known."""
        run(folder)
        found = step(folder, "skills", CHAIN.replace("weight: 0.6, density: 0.5", "weight: 0.6, density: 0.4"))
        assert (found.statistics_known, found.statistics) == (1, 2)
        assert [(it.formula, it.why) for it in found.missing] == [
            ("kth_magnitude(math_skill; k=6)", ("skills.models[0].parameters.density 0.5 -> 0.4",))
        ]

    def test_a_file(self, folder: Path) -> None:
        """The issue's words; tensors that are as they were have no reason."""
        run(folder)
        file = folder / "models" / "math" / "model-00002-of-00002.safetensors"
        tensors = load_file(file)
        changed = list(tensors)[:2]
        save_file({name: it + 1 if name in changed else it for name, it in tensors.items()}, file)
        settle()
        unread = planned(folder, "math_skill").why
        assert unread == ("math/model-00002-of-00002.safetensors changed, and is not hashed yet",)
        (folder / "other.yaml").write_text(CHAIN)
        mergeflow.run(folder / "other.yaml", folder / "other")  # another recipe has it hashed
        said = f"math/model-00002-of-00002.safetensors changed: 2 of {len(tensors)} tensors"
        assert planned(folder, "math_skill").why == (said,)
        assert planned(folder, "final").why == (f"because skills changed: {said} (2 tensors)",)
        assert step(folder, "math_skill", tensor=changed[0]).why == (
            f"math/model-00002-of-00002.safetensors changed: 2 of {len(tensors)} tensors",
        )

    def test_an_output_that_was_damaged(self, folder: Path) -> None:
        """Nothing changed but the file: it is named; what it is made from is needed for it."""
        run(folder)
        with (folder / "out" / "model.safetensors").open("r+b") as file:
            file.truncate(500)
        assert step(folder, "final").why == ("out/model.safetensors was changed or removed",)
        assert step(folder, "skills").why == ("final needs it: only its statistics were kept",)
        shutil.rmtree(folder / "out")
        assert step(folder, "final").why == ("out is not there",)

    @pytest.mark.parametrize(
        ("policy", "expected"),
        [
            ("never", "final needs it: never kept (cache: never)"),
            ("always", "final needs it: its value is not in the cache any more"),
            ("auto", "final needs it: only its statistics were kept"),
        ],
    )
    def test_what_is_not_there(self, folder: Path, policy: str, expected: str) -> None:
        """The policy says why a value that has not changed is computed again."""
        text = CHAIN.replace("  skills:\n", f"  skills:\n    cache: {policy}\n")
        run(folder, text)
        for path in (folder / "cache").rglob("*"):
            if path.name == "zarr.json" and policy == "always":
                shutil.rmtree(folder / "cache")
                break
        found = step(folder, "skills", text.replace("t: 0.25", "t: 0.5"))
        assert found.why == (expected,)

    def test_without_a_cache(self, folder: Path) -> None:
        """There is none, which is why."""
        run(folder, cache=None)
        found = step(folder, "skills", CHAIN.replace("t: 0.25", "t: 0.5"), cache=None)
        assert found.why == ("final needs it: there is no cache",)
        assert {it.why for it in found.missing} == {("there is no cache",)}

    def test_the_first_run(self, folder: Path) -> None:
        """And a history that cannot be read is none."""
        assert planned(folder, "final").why == ("first run of this recipe on this machine",)
        run(folder)
        for path in (folder / "home" / "runs").iterdir():
            path.write_text("{")
        assert planned(folder, "final", CHAIN.replace("t: 0.25", "t: 0.5")).why == (
            "first run of this recipe on this machine",
        )

    def test_the_last_run_counts_whatever_its_settings(self, folder: Path) -> None:
        """A variable that was set for one run is what the next plan is held against."""
        text = CHAIN.replace("t: 0.25", 't: "${t}"').replace("steps:\n", "vars: {t: 0.25}\nsteps:\n", 1)
        (folder / "recipe.yaml").write_text(text)
        mergeflow.run(mergeflow.load(folder / "recipe.yaml", t=0.75), folder / "out")
        assert planned(folder, "final", text).why == ("final.parameters.t 0.75 -> 0.25 (9 tensors)",)

    def test_a_mergekit_file(self, folder: Path) -> None:
        """The step of a single document is the file: paths start there. Of several, with the document's name."""
        single = (
            "merge_method: slerp\nbase_model: ./models/base\nmodels: [{model: ./models/math}]\nparameters: {t: 0.5}\n"
        )
        run(folder, single)
        (folder / "recipe.yaml").write_text(single.replace("0.5", "0.4"))
        (found,) = mergeflow.plan(folder / "recipe.yaml", folder / "out").steps
        assert found.why == ("parameters.t 0.5 -> 0.4 (9 tensors)",)
        several = f"name: first\n{single}---\nname: second\n{single.replace('models/math', 'models/code')}".replace(
            "./models/base\nmodels: [{model: ./models/code", "first\nmodels: [{model: ./models/code"
        )
        run(folder, several)
        changed = several.replace("t: 0.5", "t: 0.4", 1)
        assert planned(folder, "second", changed).why == (
            "because first changed: first.parameters.t 0.5 -> 0.4 (9 tensors)",
        )

    def test_a_folder_of_somebody_else(self, folder: Path) -> None:
        """What cannot be written can still be explained."""
        (folder / "out").mkdir()
        (folder / "out" / "notes.txt").write_text("mine")
        assert step(folder, "final").why == ("first run of this recipe on this machine",)
        with pytest.raises(OutputError):
            planned(folder, "final")
