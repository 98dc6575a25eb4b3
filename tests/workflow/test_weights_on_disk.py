"""Weights in other files than a folder's safetensors: pickles, bare files, other dtypes, merged by the command's engine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_checkpoints import llama_tensors, read_model, write_model

import mergeflow
from mergeflow import Options
from mergeflow.errors import OutputError, RecipeError
from mergeflow.models import pickled

AVERAGE = "merge_method: linear\nmodels:\n  - {{model: {0}, parameters: {{weight: 1}}}}\n  - {{model: {1}, parameters: {{weight: 3}}}}\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def merged(text: str, here: Path, out: str = "out") -> dict[str, torch.Tensor]:
    """What the merge of a mergekit file writes."""
    (here / "merge.yml").write_text(text)
    mergeflow.run(here / "merge.yml", here / out, options=Options(state=here / "state", cache=here / "cache"))
    return read_model(here / out)


def refused(text: str, here: Path) -> str:
    with pytest.raises((RecipeError, OutputError)) as caught:
        merged(text, here)
    return str(caught.value)


def written(folder: Path, tensors: dict[str, torch.Tensor], *, shards: int = 1, old: bool = False) -> Path:
    """A folder as transformers wrote them before safetensors."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama"}))
    names = list(tensors)
    if shards == 1:
        torch.save(tensors, folder / "pytorch_model.bin", _use_new_zipfile_serialization=not old)
        return folder
    weight_map = {}
    for number in range(shards):
        file = f"pytorch_model-{number + 1:05d}-of-{shards:05d}.bin"
        mine = names[number::shards]
        torch.save({name: tensors[name] for name in mine}, folder / file, _use_new_zipfile_serialization=not old)
        weight_map |= dict.fromkeys(mine, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return folder


def scrambled(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same values in other strides: matrices transposed in memory, vectors every other element of a longer one."""
    found = {}
    for name, tensor in tensors.items():
        wide = torch.stack([tensor, torch.zeros_like(tensor)], -1)
        found[name] = tensor.t().contiguous().t() if tensor.ndim == 2 else wide[..., 0]
    return found


class TestPickledFolders:
    """Folders with pytorch_model.bin."""

    @pytest.mark.parametrize("old", [False, True], ids=["zip", "legacy"])
    @pytest.mark.parametrize("shards", [1, 3])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
    def test_the_same_merge_as_from_safetensors(self, here: Path, old: bool, shards: int, dtype: torch.dtype) -> None:
        """A merge of pickled models writes the bytes that the merge of the same models in safetensors writes."""
        for seed, name in enumerate("ab"):
            tensors = llama_tensors(seed, dtype=dtype)
            write_model(here / name, tensors)
            written(here / f"{name}_bin", tensors, shards=shards, old=old)
        merged(AVERAGE.format("a", "b"), here, "one")
        merged(AVERAGE.format("a_bin", "b_bin"), here, "two")
        assert (here / "one/model.safetensors").read_bytes() == (here / "two/model.safetensors").read_bytes()

    @pytest.mark.parametrize("runs", [1, 20, 1024])
    @pytest.mark.parametrize("method", ["linear", "ties"])
    def test_strides_do_not_matter(self, here: Path, method: str, runs: int, monkeypatch: pytest.MonkeyPatch) -> None:
        """Transposed and sliced tensors, views or not, merge to the bytes of contiguous ones, or are copied."""
        monkeypatch.setattr(pickled, "MOST_RUNS", runs)
        for seed, name in enumerate("abc"):
            tensors = llama_tensors(seed)
            write_model(here / name, tensors)
            written(here / f"{name}_bin", scrambled(tensors))
        text = "merge_method: {}\nbase_model: a{}\nmodels:\n" + "".join(
            f"  - {{{{model: {name}{{}}, parameters: {{{{weight: 0.5, density: 0.6}}}}}}}}\n" for name in "bc"
        )
        if method == "linear":
            text = text.replace(", density: 0.6", "").replace("base_model: a{}\n", "")
        count = text.count("{}") - 1
        merged(text.format(method, *[""] * count), here, "one")
        merged(text.format(method, *["_bin"] * count), here, "two")
        assert (here / "one/model.safetensors").read_bytes() == (here / "two/model.safetensors").read_bytes()
        merged("merge_method: passthrough\nmodels: [{model: a_bin}]\n", here, "copy")
        assert (here / "copy/model.safetensors").read_bytes() == (here / "a/model.safetensors").read_bytes()

    def test_a_second_run_keeps_everything(self, here: Path) -> None:
        """Tensors of pickled files have keys like others: what is there is kept."""
        written(here / "a", scrambled(llama_tensors(0)))
        written(here / "b", llama_tensors(1))
        (here / "merge.yml").write_text(AVERAGE.format("a", "b"))
        options = Options(state=here / "state", cache=None)
        first = mergeflow.run(here / "merge.yml", here / "out", options=options)
        again = mergeflow.run(here / "merge.yml", here / "out", options=options)
        assert (first.tensors.computed, again.tensors.kept) == (9, 9)

    def test_shared_tensors_are_written_each(self, here: Path) -> None:
        """Two names for one tensor are two tensors of the output."""
        tensors = llama_tensors(0)
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
        written(here / "a", tensors)
        found = merged("merge_method: passthrough\nmodels: [{model: a}]\n", here)
        assert torch.equal(found["lm_head.weight"], found["model.embed_tokens.weight"])
        assert found["lm_head.weight"].equal(tensors["lm_head.weight"])

    def test_safetensors_win(self, here: Path) -> None:
        """A folder that has both formats is read from its safetensors."""
        written(here / "a", llama_tensors(0))
        write_model(here / "a", llama_tensors(1))
        found = merged("merge_method: passthrough\nmodels: [{model: a}]\n", here)
        assert found["model.norm.weight"].equal(llama_tensors(1)["model.norm.weight"])


class TestBareFiles:
    """Files of weights without a folder, a configuration or a tokenizer."""

    @staticmethod
    def tensors(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
        """A model of no architecture, with a buffer of whole numbers and a tensor without elements."""
        generator = torch.Generator().manual_seed(seed)
        return {
            "blocks.0.w": torch.randn(6, 4, generator=generator).to(dtype),
            "blocks.1.w": torch.randn(6, 4, generator=generator).to(dtype),
            "head": torch.randn(5, generator=generator).to(dtype),
            "steps": torch.tensor([3, 4]),
            "nothing": torch.zeros(0, 3, dtype=dtype),
            "mask": torch.tensor([True, False]),
        }

    def test_files_of_every_kind_merge(self, here: Path) -> None:
        """safetensors, .pt, .pth and .ckpt files merge with one another; the output has weights, card and lock only."""
        save_file(self.tensors(0), here / "base.safetensors")
        torch.save({"state_dict": self.tensors(1), "epoch": 3}, here / "a.pt")
        torch.save(self.tensors(2), here / "b.pth", _use_new_zipfile_serialization=False)
        torch.save({"model": scrambled(self.tensors(3))}, here / "c.ckpt")
        found = merged(
            "merge_method: task_arithmetic\nbase_model: base.safetensors\nmodels:\n"
            "  - {model: a.pt, parameters: {weight: 0.7}}\n"
            "  - {model: ./b.pth, parameters: {weight: [{filter: head, value: 0.2}, {value: 0.5}]}}\n"
            f"  - {{model: {here}/c.ckpt, parameters: {{weight: 0.1}}}}\n",
            here,
        )
        base, a, b, c = (self.tensors(seed) for seed in range(4))
        assert found.keys() == base.keys()
        for name, weight in (("blocks.0.w", 0.5), ("blocks.1.w", 0.5), ("head", 0.2)):
            expected = base[name].double()
            expected = expected + 0.7 * (a[name] - base[name]) + weight * (b[name] - base[name])
            torch.testing.assert_close(found[name].double(), expected + 0.1 * (c[name] - base[name]), atol=1e-6, rtol=0)
        assert all(found[name].equal(base[name]) for name in ("steps", "nothing", "mask"))
        files = {path.name for path in (here / "out").iterdir()}
        assert files == {"model.safetensors", "README.md", "mergeflow.lock.json"}
        assert "library_name" not in (here / "out" / "README.md").read_text()  # no library loads it by itself

    def test_mixed_dtypes(self, here: Path) -> None:
        """Files in fp16, fp32 and float64 merge; the sum is that of their values."""
        dtypes = (torch.float64, torch.float16)
        for name, dtype in zip("ab", dtypes, strict=True):
            torch.save(self.tensors(1, dtype), here / f"{name}.pt")
        found = merged(f"{AVERAGE.format('a.pt', 'b.pt')}dtype: float64\n", here)
        one, other = (self.tensors(1, dtype)["head"].double() for dtype in dtypes)
        torch.testing.assert_close(found["head"], (one + 3 * other) / 4, atol=1e-12, rtol=0)

    def test_whole_numbers_that_differ(self, here: Path) -> None:
        """A buffer of whole numbers is copied when all agree, and an error when they do not."""
        torch.save(self.tensors(1), here / "a.pt")
        torch.save(self.tensors(2) | {"steps": torch.tensor([3, 5])}, here / "b.pt")
        assert "steps" in refused(AVERAGE.format("a.pt", "b.pt"), here)

    def test_a_file_with_a_folder(self, here: Path) -> None:
        """A bare file merges with a model of a folder, whose configuration the output has."""
        write_model(here / "a", llama_tensors(0))
        torch.save(llama_tensors(1), here / "b.pt")
        merged(f"{AVERAGE.format('a', 'b.pt')}base_model: a\n", here)
        assert (here / "out/config.json").exists()

    def test_the_output_may_lie_beside_the_file_but_not_replace_it(self, here: Path) -> None:
        """The folder of a bare file is no model: only the file itself must not be replaced."""
        (here / "files").mkdir()
        save_file(self.tensors(0), here / "files/a.safetensors")
        text = "merge_method: passthrough\nmodels: [{model: files/a.safetensors}]\n"
        merged(text, here, "files/out")
        (here / "merge.yml").write_text(text)
        with pytest.raises((RecipeError, OutputError), match="which the output would replace"):
            mergeflow.run(here / "merge.yml", here / "files", options=Options(state=here / "state", cache=None))
        assert load_file(here / "files/a.safetensors").keys() == self.tensors(0).keys()
