"""Every way in which the place of an output can be wrong: somebody's work, a model, another output, a full disk."""

from __future__ import annotations

import errno
import os
import resource
import shutil
from pathlib import Path

import pytest
from command_line import everything, mergeflow, write
from recipes import LINEAR, TIES
from refusals import says

pytestmark = pytest.mark.usefixtures("workplace", "out")


class TestOutputs:
    """Places that a run must not write."""

    def refuse(self, workplace: Path, out: str, message: str, text: str = LINEAR) -> None:
        """`plan` and `run` refuse OUT on the command line, and the recipe's own when it names the same."""
        before = everything(workplace)
        for command in ("plan", "run"):
            says(mergeflow(command, write(text), out), 1, f"error: {message.format(out=out)}")
            says(
                mergeflow(command, write(text + f"outputs:\n  soup: {out}\n")),
                1,
                f"recipe.yaml:10:3: error: outputs.soup: {message.format(out=workplace / out)}",
            )
        Path("recipe.yaml").unlink()
        assert everything(workplace) == before

    def test_a_folder_that_is_not_ours(self, workplace: Path) -> None:
        """Somebody's work stays as it is, whatever is in it."""
        Path("work").mkdir()
        Path("work/thesis.txt").write_text("years")
        message = f"{workplace}/work holds files that mergeflow did not write (it has no mergeflow.lock.json): choose …"
        self.refuse(workplace, "work", message)

    def test_a_folder_with_weights_of_others(self, workplace: Path, out: Path) -> None:
        """Shards that loaders would mix with ours."""
        (out / "model-00001-of-00002.safetensors").write_bytes(b"")
        message = f"{out} holds weights that mergeflow did not write (model-00001-of-00002.safetensors), …"
        self.refuse(workplace, "out", message)

    def test_a_file(self, workplace: Path) -> None:
        """A file is not replaced by a folder."""
        Path("file").write_text("mine")
        self.refuse(workplace, "file", "{out} is a file: choose another folder, or remove it")

    def test_a_file_above(self, workplace: Path) -> None:
        """Nor is a file on the way to it."""
        Path("file").write_text("mine")
        self.refuse(workplace, "file/model", f"cannot create {workplace}/file/model: {workplace}/file is not a folder")

    def test_a_name_too_long_for_the_system(self, workplace: Path) -> None:
        """What the system refuses is a message like any other."""
        self.refuse(workplace, "x" * 300, "… File name too long")

    def test_the_folder_of_a_model(self, workplace: Path, out: Path) -> None:
        """An output that is an input: even one of ours, which could be replaced, would be lost as a model."""
        text = LINEAR.replace("./b", "./out")
        self.refuse(workplace, "out", "{out} is the folder of the model ./out, which the output would replace: …", text)

    def test_the_folder_of_a_model_by_another_name(self, workplace: Path, out: Path) -> None:
        """A link to it is the same folder."""
        Path("link").symlink_to("out")
        text = LINEAR.replace("./b", "./out")
        self.refuse(
            workplace, "link", "{out} is the folder of the model ./out, which the output would replace: …", text
        )
        text = LINEAR.replace("./b", "./link")
        self.refuse(
            workplace, "out", "{out} is the folder of the model ./link, which the output would replace: …", text
        )

    def test_a_folder_in_that_of_a_model(self, workplace: Path) -> None:
        """What is merged is only read."""
        shutil.copytree("b", "x")
        message = "{out} lies in the folder of the model ./x, which is only read: choose a folder outside of it"
        self.refuse(workplace, "x/merged", message, LINEAR.replace("./b", "./x"))

    def test_a_folder_that_holds_that_of_a_model(self, workplace: Path, out: Path) -> None:
        """A model kept inside an earlier output would go with it."""
        shutil.copytree("b", out / "parent")
        message = "{out} holds the folder of the model ./out/parent, which the output would replace: choose …"
        self.refuse(workplace, "out", message, LINEAR.replace("./b", "./out/parent"))

    TWO = """
mergeflow: 1
steps:
  x:
    merge_method: linear
    models: [{model: ./a, parameters: {weight: 1}}, {model: ./b, parameters: {weight: 1}}]
  y:
    merge_method: linear
    models: [{model: ./a, parameters: {weight: 1}}, {model: ./c, parameters: {weight: 1}}]
outputs:
  x: %s
  %sy: %s
"""

    @pytest.mark.parametrize("second", ["./merged", "./merged/", "merged", "./elsewhere/../merged", "link"])
    def test_two_outputs_in_one_folder(self, workplace: Path, second: str) -> None:
        """However the second path is written; said once."""
        Path("link").symlink_to("merged")
        path = write(self.TWO % ("./merged", "", second))
        before = everything(workplace)
        for command in ("validate", "plan", "run"):
            done = mergeflow(command, path)
            says(done, 1, "recipe.yaml:11:3: error: outputs.y: … the folder of … needs its own…")
            assert everything(workplace) == before

    @pytest.mark.parametrize(("first", "second", "relation"), [("m", "m/inner", "lies in"), ("m/inner", "m", "holds")])
    def test_an_output_in_another(self, workplace: Path, first: str, second: str, relation: str) -> None:
        """The outer one would replace the inner one."""
        path = write(self.TWO % (first, "", second))
        before = everything(workplace)
        expected = (
            f"{workplace / second} {relation} the folder of the output x, and each output needs its own: choose …"
        )
        for command in ("validate", "plan", "run"):
            says(mergeflow(command, path), 1, f"recipe.yaml:11:3: error: outputs.y: {expected}")
            assert everything(workplace) == before

    def test_a_user_who_is_not_there(self, workplace: Path) -> None:
        """~somebody, beside another mistake: both are said."""
        path = write(self.TWO % ("~nobodyhere/merged", "", "./a"))
        before = everything(workplace)
        for command in ("validate", "plan", "run"):
            says(
                mergeflow(command, path),
                1,
                "recipe.yaml:10:3: error: outputs.x: ~nobodyhere/merged: …",
                "recipe.yaml:11:3: error: outputs.y: … is the folder of the model ./a, …",
            )
            assert everything(workplace) == before

    def test_every_folder_is_looked_at(self, workplace: Path) -> None:
        """Two outputs, two wrong folders, two messages; nothing of either is made."""
        Path("file").write_text("mine")
        path = write(self.TWO % ("./a/merged", "", "./file/merged/../../b"))
        before = everything(workplace)
        says(
            mergeflow("run", path),
            1,
            "recipe.yaml:10:3: error: outputs.x: … lies in the folder of the model ./a, …",
            "recipe.yaml:11:3: error: outputs.y: … is the folder of the model ./b, …",
        )
        assert everything(workplace) == before

    def test_no_folder(self, workplace: Path) -> None:
        """Neither the recipe nor the command line names one: how to name it."""
        before = everything(workplace)
        says(
            mergeflow("run", write(LINEAR)),
            1,
            "recipe.yaml:4:3: error: outputs.soup: no folder for the output soup: "
            "name one (mergeflow run recipe.yaml OUT)",
        )
        Path("recipe.yaml").unlink()
        assert everything(workplace) == before


class TestFullDisks:
    """Room is asked for before a run, and its end in the middle of one is survived."""

    def test_too_little_room(self, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Seen before a byte is written: how much is needed, how much is there."""
        real = os.statvfs(workplace)
        small = os.statvfs_result((*real[:4], 1, *real[5:]))
        monkeypatch.setattr(os, "statvfs", lambda path: small)
        before = everything(workplace)
        done = mergeflow("run", write(LINEAR), "out")
        says(done, 1, "error: not enough room in …: the output needs …, … are free …")
        Path("recipe.yaml").unlink()
        assert everything(workplace) == before

    def test_files_may_not_grow_so_large(self, workplace: Path) -> None:
        """A limit of the process (ulimit -f), with the two ways out."""
        before = everything(workplace)
        path = write(LINEAR + "    dtype: float64\n")
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (16384, limits[1]))
        try:
            done = mergeflow("run", path, "out", "--no-cache")
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        says(done, 1, "error: not enough room: … (ulimit -f): raise the limit, or set a smaller max_shard_size")
        Path("recipe.yaml").unlink()
        assert everything(workplace) == before

    @pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
    @pytest.mark.parametrize("calls", [0, 3])
    @pytest.mark.parametrize("cache", [True, False])
    def test_the_disk_is_full_in_the_middle(
        self, workplace: Path, monkeypatch: pytest.MonkeyPatch, code: int, calls: int, cache: bool
    ) -> None:
        """At the first write and at a later one: exit 3, the earlier output intact, nothing left beside it."""
        before = everything(workplace)
        done = mergeflow("run", _failing(monkeypatch, calls, code), "out", *([] if cache else ["--no-cache"]))
        full = "the disk is full: cannot write …; free some space and run again"
        says(done, 3, f"error: {full if code != errno.EIO else 'cannot write …: Input/output error'}")
        Path("recipe.yaml").unlink()
        assert everything(workplace) == before

    def test_the_disk_is_full_when_the_output_is_put_in_place(
        self, workplace: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The weights fitted, the model card did not: exit 3, and the earlier output is whole."""

        def full(self: object, path: Path, content: bytes) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        before = everything(workplace / "out")
        with monkeypatch.context() as patches:
            patches.setattr("mergeflow.output.disk.Disk.write", full)
            done = mergeflow("run", write(LINEAR), "out")
        says(done, 3, f"error: cannot write {workplace / 'out'}: No space left on device")
        assert everything(workplace / "out") == before


def _failing(monkeypatch: pytest.MonkeyPatch, calls: int, code: int, text: str = TIES) -> str:
    """A recipe, and a disk that fails after so many writes of tensors."""
    real, done = os.pwrite, []

    def pwrite(descriptor: int, content: bytes, offset: int) -> int:
        done.append(offset)
        if len(done) > calls:
            raise OSError(code, os.strerror(code))
        return real(descriptor, content, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    return write(text)
