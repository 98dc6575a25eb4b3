from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

COSTLY = ("torch", "zarr", "dask", "huggingface_hub", "transformers", "numpy", "safetensors")


def test_opening_a_folder_imports_nothing_costly(tmp_path: Path) -> None:
    """`validate` and `plan` over local folders do not pay for torch, zarr, dask or the hub's library."""
    from model_files import write_weights

    write_weights(tmp_path / "model" / "model.safetensors", {"a": ("F32", (1,))})
    program = f"""
import sys
from pathlib import Path
from mergeflow.models.digests import DigestMemory
from mergeflow.models.layout import infer_layout
from mergeflow.models.open import open_model
from mergeflow.recipe.records import ModelReference
found = open_model(ModelReference("model"), [Path({str(tmp_path)!r})], download=False)
DigestMemory(Path({str(tmp_path / "digests.sqlite")!r})).compute(found.tensors.values(), 2)
print(sorted(set({COSTLY!r}) & sys.modules.keys()))
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=False)
    assert (done.stdout, done.stderr) == ("[]\n", "")
