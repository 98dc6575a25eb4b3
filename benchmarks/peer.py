"""The peer: mergekit 0.1.5 from PyPI, in a virtual environment of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

VERSION = "0.1.5"
TORCH = "torch==2.13.0"


def mergekit_command(environment: Path) -> str:
    """The path of `mergekit-yaml` in the virtual environment at that path, which is made when it is not there."""
    command = environment / "bin" / "mergekit-yaml"
    if not command.exists():
        print(f"installing mergekit {VERSION} in {environment} (some minutes)", flush=True)
        subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True)
        # torch first and by version: mergekit asks for any, and the newest may come with gigabytes of CUDA.
        for package in (TORCH, f"mergekit=={VERSION}"):
            pip = [str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", package]
            subprocess.run(pip, check=True)
    return str(command)
