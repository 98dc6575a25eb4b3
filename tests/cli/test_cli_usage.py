"""What the command line says of itself: help, usage, the methods and the schema."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from command_line import everything, mergeflow, write
from recipes import TIES

import mergeflow as package
from mergeflow.methods.table import METHODS
from mergeflow.recipe.fields import OPERATIONS

COMMANDS = (
    "run",
    "plan",
    "validate",
    "explain",
    "methods",
    "schema",
    "convert",
    "cache",
    "cache ls",
    "cache du",
    "cache clear",
)

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def recipe() -> str:
    return write(TIES)


class TestUsage:
    def test_version(self) -> None:
        """The version, and nothing else."""
        done = mergeflow("--version")
        assert (done.code, done.out, done.err) == (0, f"mergeflow {package.__version__}\n", "")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_every_command_says_what_it_is_for(self, command: str) -> None:
        """--help and -h: usage, a sentence, and each option with a sentence of its own."""
        done = mergeflow(*command.split(), "--help")
        assert (done.code, done.err) == (0, "")
        assert f"Usage: mergeflow {command}" in done.out
        assert mergeflow(*command.split(), "-h").out == done.out
        options = re.findall(r"^│ \*?\s*(--[\w-]+)[^│]*│$", done.out, re.MULTILINE)
        assert "--help" in options
        for line in re.findall(r"^│ \*?\s*--[\w-]+(.*)│$", done.out, re.MULTILINE):
            assert len(line.split()) > 3

    def test_help_has_every_flag_of_the_design(self) -> None:
        """Others script these: their names are part of the contract."""
        text = mergeflow("run", "--help").out
        flags = "--set --cache --no-cache --scheduler --workers --device --memory --report --quiet --strict"
        assert all(flag in text for flag in flags.split())
        assert "--json" in mergeflow("plan", "--help").out
        assert "--tensor" in mergeflow("explain", "--help").out

    def test_without_a_command_the_commands_are_listed(self) -> None:
        """`mergeflow` alone is a question: the help, as a usage error."""
        done = mergeflow()
        assert done.code == 2
        assert all(f" {command} " in done.out + done.err for command in COMMANDS if " " not in command)

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            pytest.param(("merge",), "No such command 'merge'", id="unknown command"),
            pytest.param(("run",), "Missing argument 'RECIPE'", id="no recipe"),
            pytest.param(("run", "recipe.yaml", "out", "more"), "unexpected extra argument", id="too many arguments"),
            pytest.param(("run", "recipe.yaml", "out", "--qiet"), "No such option: --qiet", id="unknown option"),
            pytest.param(("run", "recipe.yaml", "out", "--set", "t"), "--set takes NAME=VALUE, not 't'", id="set"),
            pytest.param(("plan", "recipe.yaml", "--set", "=1"), "--set takes NAME=VALUE, not '=1'", id="set no name"),
            pytest.param(
                ("run", "recipe.yaml", "out", "--scheduler", "spark"),
                "--scheduler is threads, processes or an address such as tcp://host:8786, not 'spark'",
                id="scheduler",
            ),
            pytest.param(
                ("run", "recipe.yaml", "out", "--device", "tpu"),
                "--device is auto, cpu, cuda or cuda:N, not 'tpu'",
                id="device",
            ),
            pytest.param(("run", "recipe.yaml", "out", "--device", "cuda:x"), "not 'cuda:x'", id="device number"),
            pytest.param(("run", "recipe.yaml", "out", "--device", "cuda:"), "not 'cuda:'", id="device no number"),
            pytest.param(("run", "recipe.yaml", "out", "--device", "3"), "not '3'", id="device only a number"),
            pytest.param(("run", "recipe.yaml", "out", "--memory", "lots"), "'lots' is not a size", id="memory"),
            pytest.param(("run", "recipe.yaml", "out", "--memory", "-1GB"), "is not a size", id="memory negative"),
            pytest.param(
                ("plan", "recipe.yaml", "--memory", "1KB"), "--memory 1KB is too little", id="memory too small"
            ),
            pytest.param(("run", "recipe.yaml", "out", "--workers", "0"), "--workers", id="no workers"),
            pytest.param(("run", "recipe.yaml", "out", "--workers", "two"), "--workers", id="workers"),
            pytest.param(
                ("run", "recipe.yaml", "out", "--cache", "x", "--no-cache"),
                "--cache and --no-cache exclude each other",
                id="cache and none",
            ),
            pytest.param(("cache", "prune"), "No such command 'prune'", id="unknown cache command"),
        ],
    )
    def test_a_mistake_of_usage_is_exit_code_2(
        self, recipe: str, workplace: Path, arguments: tuple[str, ...], message: str
    ) -> None:
        """What is wrong and how to ask for help, on stderr; nothing is done."""
        before = everything(workplace)
        done = mergeflow(*arguments)
        assert (done.code, done.out) == (2, "")
        assert message in " ".join(done.err.replace("│", " ").split())
        assert "Usage: mergeflow" in done.err
        assert everything(workplace) == before

    @pytest.mark.parametrize("memory", ["16MB", "64MiB", "0.1G", "100000000", "100 mb"])
    def test_sizes_are_written_as_people_write_them(self, recipe: str, memory: str) -> None:
        """Decimal and binary units, of any case, or a number of bytes."""
        assert mergeflow("plan", recipe, "--memory", memory, "--workers", "1").code == 0


class TestMethods:
    def test_all_of_them(self) -> None:
        """A line for each, with what it does."""
        done = mergeflow("methods")
        assert (done.code, done.err) == (0, "")
        for method in METHODS.values():
            assert re.search(rf"^{method.name}\s+{re.escape(method.summary)}", done.out, re.MULTILINE)

    @pytest.mark.parametrize("name", list(METHODS))
    def test_one_in_full(self, name: str) -> None:
        """Formula, paper, what it takes, each parameter with default and bounds, and an example, as they stand."""
        method = METHODS[name]
        done = mergeflow("methods", name)
        assert (done.code, done.err) == (0, "")
        assert f"formula: {method.formula}\n" in done.out
        assert method.paper in done.out
        assert method.title in done.out
        for parameter in method.parameters:
            assert f"  {parameter.name} ({parameter.kind}, " in done.out
        for line in method.example.strip().splitlines():
            assert line in done.out

    @pytest.mark.parametrize("name", [name for name in METHODS if name not in OPERATIONS])
    def test_examples_are_valid_recipes(self, name: str, workplace: Path) -> None:
        """What `methods NAME` shows can be pasted into a file and validated. (These models have no o_proj.)"""
        lines = mergeflow("methods", name).out.partition("example:\n")[2].splitlines()
        (workplace / "models").mkdir()
        for model, like in (("base", "a"), ("math", "b"), ("chat", "c"), ("code", "a")):
            (workplace / "models" / model).symlink_to(workplace / like)
        done = mergeflow("validate", write("\n".join(line[2:] for line in lines) + "\n"))
        assert done.code == 0
        assert all("'o_proj' matches no tensor" in line for line in done.lines)

    def test_json(self) -> None:
        """All methods, or one, with their parameters."""
        names = [method["name"] for method in json.loads(mergeflow("methods", "--json").out)]
        assert names == list(METHODS)
        (ties,) = json.loads(mergeflow("methods", "ties", "--json").out)
        density = next(parameter for parameter in ties["parameters"] if parameter["name"] == "density")
        assert density == {
            "name": "density",
            "kind": "float",
            "scope": "non_base",
            "required": False,
            "default": 1.0,
            "minimum": 0.0,
            "maximum": 1.0,
            "choices": [],
            "meaning": "share of the task vector that is kept",
        }

    def test_what_one_costs(self) -> None:
        """Bytes read for each byte written and passes, the first time and with statistics known; as data too."""
        text = " ".join(mergeflow("methods", "ties").out.split())
        assert "cost: the example reads 6 bytes for each byte written (3 inputs), in 2 passes; 3 where" in text
        assert "Once its statistics (2 x kth_magnitude) are cached: 1 pass and 3 bytes." in text
        (ties,) = json.loads(mergeflow("methods", "ties", "--json").out)
        assert ties["cost"]["passes"] == 2
        assert ties["cost"]["statistics"] == {"kth_magnitude": 2}
        assert ties["example"].startswith("merge_method: ties\n")

    def test_one_that_is_not_there(self) -> None:
        """Exit code 1 and the nearest name."""
        done = mergeflow("methods", "tyes")
        assert (done.code, done.out) == (1, "")
        assert done.err == "error: there is no merge method 'tyes'; did you mean 'ties'?\n"


def test_the_schema_is_json_and_knows_every_method() -> None:
    """Editors complete what `mergeflow schema` prints."""
    done = mergeflow("schema")
    assert (done.code, done.err) == (0, "")
    text = json.dumps(json.loads(done.out))
    assert "$schema" in json.loads(done.out)
    assert all(f'"{name}"' in text for name in METHODS)
