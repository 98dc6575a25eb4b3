"""Models of the hub in `verify` and `lineage`: at the commit of the lock, with their own lineage, without a network."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import mergeflow, write
from hub_server import Repository, running_hub
from tiny_checkpoints import llama_tensors, raw_bytes, write_model

PROGRAM = "from mergeflow.cli.main import main; main()"
MADE = """
mergeflow: 1
models: {a: ./a, b: ./b}
steps:
  made: {merge_method: linear, models: [{model: a, parameters: {weight: 1}}, {model: b, parameters: {weight: 1}}]}
"""
USE = """
mergeflow: 1
models: {made: org/made, c: ./c}
steps:
  used: {merge_method: linear, models: [{model: made, parameters: {weight: 1}}, {model: c, parameters: {weight: 1}}]}
"""


@pytest.mark.usefixtures("workplace")
def test_a_merge_of_a_merge_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its lock comes along, so the whole recipe is told; it verifies offline at its commit, whatever `main` is now."""
    assert mergeflow("run", write(MADE, "made.yaml"), "published", "-q").code == 0
    files = raw_bytes(Path("published"))
    other = raw_bytes(write_model(tmp_path / "other", llama_tensors(8)))
    write(USE, "use.yaml")
    with running_hub() as hub:
        first, second = "1" * 40, "2" * 40
        hub.repositories["org/made"] = Repository({first: files, second: other}, {"main": first})
        environment = os.environ | {
            "HF_ENDPOINT": hub.address,
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "NO_PROXY": "127.0.0.1",
            "PYTHONPATH": str(Path(__file__).parents[2]),
        }

        def command(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                [sys.executable, "-c", PROGRAM, *arguments],
                capture_output=True,
                text=True,
                env=environment | more,
                cwd=tmp_path,
                check=False,
            )

        done = command("run", "use.yaml", "used", "-q")
        assert (done.returncode, done.stderr) == (0, "")
        hub.repositories["org/made"] = replace(hub.repositories["org/made"], refs={"main": second})
        online = command("verify", "used")
        assert (online.returncode, online.stderr) == (0, "")
        hub.requests.clear()
        offline = command("verify", "used", HF_HUB_OFFLINE="1")
        assert (offline.returncode, hub.requests) == (0, [])
    lines = mergeflow("lineage", "used").out.splitlines()
    assert lines[2].startswith(f"    ├── made: org/made@{first}  digest ")
    assert "made by mergeflow" in lines[3]
    assert "made = linear(./a weight=1, ./b weight=1)" in lines[4]
