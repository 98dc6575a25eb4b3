"""What only a process of its own shows: ctrl-C, what is imported, and readers that go away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from command_line import everything, mergeflow
from recipes import LINEAR, TIES
from tiny_checkpoints import raw_bytes

ROOT = Path(__file__).parents[2]
MERGEFLOW = "from mergeflow.cli.main import main; main()"
HEAVY = ("torch", "transformers", "dask", "distributed", "zarr", "zarrs")

pytestmark = pytest.mark.usefixtures("workplace", "out")


def python(program: str, *arguments: str, **streams: int) -> subprocess.CompletedProcess[str]:
    """Run a program in an interpreter of its own, in the current folder."""
    environment: Mapping[str, str] = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    return subprocess.run(command, text=True, check=False, env=environment, **pipes)  # type: ignore[call-overload]


def test_the_package_can_be_run_as_a_module() -> None:
    """`python -m mergeflow` is the command."""
    done = subprocess.run([sys.executable, "-m", "mergeflow", "--version"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0
    assert "mergeflow" in done.stdout


# The process sends itself what the kernel sends it when ctrl-C is typed, at the moment that a test chooses.
INTERRUPTED = """
import os, signal, sys
import mergeflow.models.digests as digests
from mergeflow.output.disk import Disk

def then(function, calls):
    left = [calls]
    def called(*arguments):
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return function(*arguments)
    return called

signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may have told its background jobs to ignore it
moment = sys.argv.pop(1)
if moment == "planning":
    digests.DigestMemory.known = then(digests.DigestMemory.known, 1)
if moment == "hashing":
    digests.hash_batch = then(digests.hash_batch, 1)
if moment == "merging":
    os.pwrite = then(os.pwrite, 3)
if moment == "publishing":
    Disk.exchange = then(Disk.exchange, 1)

from mergeflow.cli.main import main
main()
"""


@pytest.mark.parametrize("moment", ["hashing", "merging", "publishing"])
def test_ctrl_c_leaves_everything_as_it_was(workplace: Path, out: Path, moment: str) -> None:
    """Exit code 130, one line, the earlier output byte for byte, and nothing beside it; then the run can be done."""
    Path("recipe.yaml").write_text(TIES)
    before, earlier = everything(workplace), raw_bytes(out)
    done = python(INTERRUPTED, moment, "run", "recipe.yaml", "out", "--workers", "2")
    assert done.stderr == "interrupted; no output is half written, and the next run goes on from here\n"
    assert (done.returncode, done.stdout) == (130, "")
    assert {name: content for name, content in everything(workplace).items() if name in before} == before
    assert raw_bytes(out) == earlier
    # A run that had everything ready keeps it for the next one, in a folder that is not seen.
    assert everything(workplace).keys() - before.keys() <= set(_staged(workplace) if moment == "publishing" else ())

    assert mergeflow("run", "recipe.yaml", "out").code == 0
    assert not (workplace / ".out.mergeflow").exists()


def _staged(workplace: Path) -> list[str]:
    return [name for name in everything(workplace) if name.startswith(".out.mergeflow")]


def test_ctrl_c_of_a_plan_says_no_more_than_that(workplace: Path) -> None:
    """Only a run has something to reassure about."""
    Path("recipe.yaml").write_text(TIES)
    done = python(INTERRUPTED, "planning", "plan", "recipe.yaml")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_commands_that_compute_nothing_import_nothing_heavy(workplace: Path) -> None:
    """validate, plan, explain, methods, schema and cache start fast: no torch, transformers, Dask or zarr."""
    Path("recipe.yaml").write_text(TIES)
    assert mergeflow("run", "recipe.yaml", "out").code == 0
    program = """
import sys
from typer.testing import CliRunner
from mergeflow.cli.main import app
for command in sys.stdin.read().splitlines():
    done = CliRunner().invoke(app, command.split())
    assert done.exit_code == 0, (command, done.output)
    print(command, *(name for name in sys.argv[1:] if name in sys.modules))
"""
    commands = [
        "validate recipe.yaml",
        "plan recipe.yaml out",
        "plan recipe.yaml elsewhere --json",
        "explain recipe.yaml --tensor *norm*",
        "methods",
        "methods ties",
        "schema",
        "cache ls",
        "cache du",
        "cache clear --yes",
        "--version",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", program, *HEAVY],
        input="\n".join(commands),
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == commands


@pytest.mark.parametrize(("command", "code"), [("validate", 0), ("plan", 0), ("broken", 1)])
def test_a_reader_that_has_gone_changes_nothing(workplace: Path, command: str, code: int) -> None:
    """`mergeflow ... | head -0`: no complaint, and the exit code is that of the work."""
    Path("recipe.yaml").write_text(LINEAR if command != "broken" else LINEAR.replace("linear", "lineer"))
    reader, writer = os.pipe()
    os.close(reader)
    arguments = ["plan", "recipe.yaml", "--json"] if command == "plan" else ["validate", "recipe.yaml"]
    with os.fdopen(writer, "w") as pipe:
        done = python(MERGEFLOW, *arguments, stdout=pipe.fileno(), **({"stderr": pipe.fileno()} if code else {}))
    assert (done.returncode, done.stderr or "") == (code, "")


@pytest.mark.parametrize("arguments", [("validate", "recipe.yaml"), ("run", "recipe.yaml", "out")])
def test_closed_streams_change_nothing(workplace: Path, arguments: tuple[str, ...]) -> None:
    """`>&- 2>&-`, as some daemons start their children: the work is done."""
    Path("recipe.yaml").write_text(LINEAR)
    program = "import os, sys; os.closerange(0, 3); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    done = python(program, "-c", MERGEFLOW, *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_full_disk_under_stdout_is_an_error(workplace: Path) -> None:
    """A plan that was redirected to a file and is not there must not look like a success."""
    Path("recipe.yaml").write_text(LINEAR)
    with open("/dev/full", "w") as full:
        done = python(MERGEFLOW, "plan", "recipe.yaml", "--json", stdout=full.fileno())
    assert (done.returncode, done.stderr) == (3, "error: cannot write to stdout: No space left on device\n")
