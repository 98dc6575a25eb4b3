"""`mergeflow cache` as a person or a script types it: filters, pins, limits, and what is never removed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from command_line import Outcome, mergeflow, write

from mergeflow.cache.leases import leasing
from mergeflow.cache.store import Cache
from mergeflow.cli.main import app

RECIPE = """
mergeflow: 1
models: {a: ./a, b: ./b, c: ./c}
vars: {t: 0.5, density: 0.5}
steps:
  skill:
    task_vector: {model: b, base: a}
  skilled:
    cache: always
    merge_method: ties
    base_model: a
    models:
      - {model: skill, parameters: {weight: 0.6, density: "${density}"}}
      - {model: c, parameters: {weight: 0.4, density: 0.25}}
  final:
    merge_method: slerp
    base_model: a
    models: [{model: skilled}]
    parameters: {t: "${t}"}
"""

pytestmark = pytest.mark.usefixtures("workplace")


@pytest.fixture
def recipe() -> str:
    """A recipe that was run: nine tensors of skilled, eighteen statistics of it and nine of final are in the cache."""
    path = write(RECIPE)
    assert mergeflow("run", path, "out", "--quiet").code == 0
    return path


@pytest.fixture
def cache(workplace: Path) -> Cache:
    return Cache(workplace / "cache")


def cached(*arguments: object) -> Outcome:
    return mergeflow("cache", *arguments)


def listed(*filters: object) -> list[dict[str, object]]:
    return [json.loads(line) for line in cached("ls", "--json", *filters).out.splitlines()]


def keys(*filters: object) -> list[str]:
    return [str(entry["key"]) for entry in listed(*filters)]


def age(cache: Cache, key: str, days: float) -> None:
    """Says of an entry that it was last used so many days ago."""
    path = cache.folders.entry(key)
    moment = os.stat(path).st_mtime - days * 86400
    os.utime(path, (moment, moment))


class TestLs:
    def test_a_recipe_and_its_steps(self, recipe: str) -> None:
        """--recipe lists what the recipe needs, --step what a step is made of; several add up."""
        assert len(keys()) == 36
        assert sorted(keys("--recipe", recipe)) == sorted(keys())
        of_step = {step: keys("--recipe", recipe, "--step", step) for step in ("skill", "skilled", "final")}
        assert {step: len(found) for step, found in of_step.items()} == {"skill": 0, "skilled": 27, "final": 9}
        assert len(keys("--recipe", recipe, "--step", "final", "--step", "skilled")) == 36

    def test_settings_make_another_recipe(self, recipe: str) -> None:
        """--set changes which keys are meant: another density shares the statistics of the other model."""
        assert keys("--recipe", recipe, "--set", "density=0.4", "--step", "final") == []
        assert len(keys("--recipe", recipe, "--set", "t=0.1")) == 36
        assert len(keys("--recipe", recipe, "--set", "t=0.1,0.5")) == 36

    def test_age_and_size(self, recipe: str, cache: Cache) -> None:
        """--older-than and --larger-than choose by last use and by bytes, alone and together."""
        found = keys()
        age(cache, found[3], days=8)
        assert keys("--older-than", "7d") == [found[3]]
        assert keys("--older-than", "2w") == []
        large = {str(entry["key"]) for entry in listed() if int(str(entry["bytes"])) > 1000}
        assert set(keys("--larger-than", "1kB")) == large
        assert 0 < len(large) < 36
        assert set(keys("--older-than", "7d", "--larger-than", "1kB")) == large & {found[3]}

    def test_the_order(self, recipe: str, cache: Cache) -> None:
        """Latest used first, else by size or by key; an unknown order is a mistake of usage."""
        last = keys("--sort", "key")[5]
        age(cache, last, days=1)
        assert keys()[-1] == last
        sizes = [int(str(entry["bytes"])) for entry in listed("--sort", "size")]
        assert sizes == sorted(sizes, reverse=True)
        assert keys("--sort", "key") == sorted(keys())
        assert cached("ls", "--sort", "age").code == 2

    def test_what_is_told_of_an_entry(self, recipe: str) -> None:
        """Last use and pins, for people and for scripts."""
        cached("pin", "--recipe", recipe, "--step", "final", "--name", "mine")
        entry = listed("--recipe", recipe, "--step", "final")[0]
        assert set(entry) == {"key", "kind", "op", "bytes", "last_used", "pinned_by"}
        assert entry["pinned_by"] == ["mine"]
        assert str(entry["last_used"]).endswith("Z")
        assert cached("ls", "--recipe", recipe, "--step", "final").out.splitlines()[0].endswith("  mine")


class TestDu:
    def test_per_step_and_the_limit(self, recipe: str) -> None:
        """With a recipe a line per step; the space on the disk and the limit always."""
        done = cached("du", "--recipe", recipe)
        assert "  step skilled: 9 tensors, 18 statistics, " in done.out
        assert "  step final: 0 tensors, 9 statistics, " in done.out
        used = json.loads(cached("du", "--recipe", recipe, "--json", "--cache-limit", "5GB").out)
        assert used["steps"]["skilled"]["tensors"] == 9
        assert used["limit"] == 5 * 10**9
        assert used["disk_bytes"] == 9 * 12288 + 27 * 8192

    def test_damage_is_counted(self, recipe: str, cache: Cache) -> None:
        """Entries that count as missing are named as such, with what to do."""
        os.makedirs(cache.folders.entry("ab" * 32))
        assert "1 damaged, which count as missing: mergeflow cache gc removes them" in cached("du").out

    def test_a_filter(self, recipe: str) -> None:
        """Totals of a part; the space on the disk stays that of everything."""
        used = json.loads(cached("du", "--larger-than", "1kB", "--json").out)
        assert 0 < used["tensors"] < 9
        assert used["disk_bytes"] == 9 * 12288 + 27 * 8192


class TestVerify:
    def test_a_whole_cache(self, recipe: str) -> None:
        """Exit code 0, and how much was read."""
        done = cached("verify")
        assert done.code == 0
        assert done.out.startswith("read 36 entries, ")
        assert done.out.endswith(": none damaged\n")

    def test_a_flipped_bit(self, recipe: str, cache: Cache) -> None:
        """Exit code 3 with key and reason while it is there; --remove removes it, and the next run computes it."""
        key = keys("--sort", "size")[0]
        path = next(Path(cache.folders.entry(key)).glob("c.*"))
        content = path.read_bytes()
        path.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
        done = cached("verify")
        assert done.code == 3
        assert f"{key}  the bytes of chunk 0 were changed\n" in done.out
        assert cached("verify", "--recipe", recipe, "--step", "final").code == 0
        found = json.loads(cached("verify", "--json").out)
        assert (found["entries"], list(found["damaged"]), found["removed"]) == (36, [key], False)
        assert cached("verify", "--remove").code == 0
        assert len(keys()) == 35
        assert mergeflow("run", recipe, "again", "--set", "t=0.3").code == 0
        assert cached("verify").code == 0
        assert len(keys("--recipe", recipe)) == 36


class TestPins:
    def test_pin_list_unpin(self, recipe: str) -> None:
        """A recipe's entries stay under any limit until the pin is taken away; without arguments pins are listed."""
        done = cached("pin", "--recipe", recipe, "--step", "final")
        assert done.out == "pinned recipe-final: 18 keys, of which 9 in the cache now\n"
        assert cached("pin").out == f"recipe-final  18 keys  {Path('recipe.yaml').absolute()}, step final\n"
        assert json.loads(cached("pin", "--json").out)["keys"] == 18
        cached("gc", "--cache-limit", "0")
        assert sorted(keys()) == sorted(keys("--recipe", recipe, "--step", "final"))
        assert cached("unpin", "recipe-final").out == "removed 1 pin: recipe-final\n"
        cached("gc", "--cache-limit", "0")
        assert keys() == []

    def test_single_keys(self, recipe: str) -> None:
        """Keys are pinned and taken out of all pins."""
        one, two = keys()[:2]
        assert cached("pin", one, two, "--name", "mine").out.startswith("pinned mine: 2 keys")
        assert cached("unpin", one).out == "took 1 key out of mine\n"
        cached("gc", "--cache-limit", "0")
        assert keys() == [two]

    def test_a_pin_of_something_else_is_not_overwritten(self, recipe: str) -> None:
        """The same recipe renews its pin; another thing under that name is refused."""
        cached("pin", keys()[0], "--name", "mine")
        done = cached("pin", "--recipe", recipe, "--name", "mine")
        assert done.code == 1
        assert "the pin mine is there already, of 1 key: name another (--name), or unpin it first" in done.err
        assert cached("pin", "--recipe", recipe).code == cached("pin", "--recipe", recipe).code == 0

    @pytest.mark.parametrize(
        ("arguments", "code", "message"),
        [
            (("pin", "abc"), 1, "'abc' is not a key"),
            (("pin", "../x"), 1, "is not a key"),
            (("pin", "0" * 64, "--name", "../x"), 1, "cannot name a pin"),
            (("pin", "--name", "x"), 2, "--name needs KEYs or --recipe"),
            (("pin", "0" * 64, "--recipe", "recipe.yaml"), 2, "exclude each other"),
            (("unpin", "nothing"), 1, "no pin 'nothing' (there are none)"),
            (("unpin", "../../x"), 1, "no pin '../../x'"),
        ],
    )
    def test_mistakes(self, arguments: tuple[str, ...], code: int, message: str) -> None:
        """A sentence and an exit code; nothing is made."""
        done = cached(*arguments)
        assert done.code == code
        assert message in " ".join(done.err.replace("│", " ").split())
        assert not Path("cache").exists()

    def test_a_damaged_pin(self, recipe: str, cache: Cache) -> None:
        """It is listed, nothing is removed while it is there, and `unpin` removes it."""
        cached("pin", keys()[0], "--name", "mine")
        Path(cache.folders.pins, "mine.json").write_text("{")
        assert cached("pin").out.startswith("mine  damaged: nothing is removed while it is there")
        done = cached("gc", "--cache-limit", "0")
        assert "nothing is removed while it is not known what these keep" in done.err
        assert len(keys()) == 36
        assert cached("unpin", "mine").code == 0


class TestGc:
    def test_dry_run(self, recipe: str) -> None:
        """Says what would go, and nothing goes."""
        done = cached("gc", "--cache-limit", "0", "--dry-run")
        assert "would remove 36 entries over the limit" in done.out
        assert len(keys()) == 36
        said = json.loads(cached("gc", "--cache-limit", "0", "--dry-run", "--json").out)
        assert (said["removed"]["over_limit"]["entries"], said["dry_run"], said["disk_bytes"]) == (36, True, 0)

    def test_by_age_and_recipe(self, recipe: str, cache: Cache) -> None:
        """--older-than removes the old, --keep-recipe what no recipe needs, both what is old and not needed."""
        mergeflow("run", recipe, "other", "--set", "density=0.4")
        mine = set(keys("--recipe", recipe))
        others = set(keys()) - mine
        old, kept = sorted(others)[0], sorted(mine)[0]
        age(cache, old, days=40)
        age(cache, kept, days=40)
        assert cached("gc", "--older-than", "30d", "--keep-recipe", recipe).code == 0
        assert set(keys()) == (mine | others) - {old}
        cached("gc", "--older-than", "30d")
        assert set(keys()) == (mine | others) - {old, kept}
        cached("gc", "--keep-recipe", recipe)
        assert set(keys()) == mine - {kept}

    def test_what_a_run_needs_stays(self, recipe: str, cache: Cache) -> None:
        """A lease holds against every rule."""
        needed = keys()[:3]
        with leasing(cache.folders, needed):
            done = cached("gc", "--older-than", "0s", "--cache-limit", "0")
            assert "3 entries pinned or needed by runs under way" in done.out
            assert sorted(keys()) == sorted(needed)

    def test_nothing_to_do(self, workplace: Path) -> None:
        """An unused cache: nothing removed, nothing made."""
        assert cached("gc").out.startswith("removed nothing\n")
        assert not (workplace / "cache").exists()


class TestClear:
    def test_a_step(self, recipe: str) -> None:
        """Only what the filters choose goes."""
        done = cached("clear", "--recipe", recipe, "--step", "skilled", "--yes")
        assert done.out.startswith("removed 27 entries, ")
        assert len(keys()) == 9

    def test_pins_stay(self, recipe: str) -> None:
        """What is pinned stays, and is told; --force removes it too."""
        cached("pin", "--recipe", recipe, "--step", "final")
        done = cached("clear", "--yes")
        assert done.out.startswith("removed 27 entries, ")
        assert "9 entries are pinned and stay (--force removes them too)" in done.out
        assert len(keys()) == 9
        assert cached("clear", "--yes", "--force").out.startswith("removed 9 entries, ")
        assert keys() == []

    def test_a_run_under_way(self, recipe: str, cache: Cache) -> None:
        """Exit code 1 when it needs some of what would go; --force removes it; what it does not need may go."""
        needed = keys("--recipe", recipe, "--step", "final")
        with leasing(cache.folders, needed):
            done = cached("clear", "--yes")
            assert done.code == 1
            assert "a run that is under way needs 9 of these 36 entries; wait for it, or use --force" in done.err
            assert len(keys()) == 36
            assert cached("clear", "--recipe", recipe, "--step", "skilled", "--yes").code == 0
            assert cached("clear", "--yes", "--force").code == 0
        assert keys() == []

    def test_no_is_no(self, recipe: str) -> None:
        """The question names the part that would go; without a yes nothing does."""
        done = mergeflow("cache", "clear", "--larger-than", "1kB", answer="n\n")
        assert done.code == 1
        assert "remove " in done.out
        assert len(keys()) == 36


class TestUsage:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (("ls", "--step", "x"), "--step needs a recipe (--recipe FILE)"),
            (("ls", "--set", "t=1"), "--set needs a recipe (--recipe FILE)"),
            (("ls", "--older-than", "yesterday"), "--older-than: 'yesterday' is not an age: write 7d, 12h, 30m or 2w"),
            (("du", "--larger-than", "much"), "--larger-than: 'much' is not a size"),
            (("gc", "--cache-limit", "much"), "--cache-limit: 'much' is not a size"),
        ],
    )
    def test_flags_that_mean_nothing(self, arguments: tuple[str, ...], message: str) -> None:
        """Exit code 2, and what would mean something."""
        done = cached(*arguments)
        assert done.code == 2
        assert message in " ".join(done.err.replace("│", " ").split())

    def test_a_step_that_no_recipe_has(self, recipe: str) -> None:
        """Exit code 1 and the nearest name."""
        done = cached("ls", "--recipe", recipe, "--step", "skiled")
        assert (done.code, done.err) == (1, "error: no step is called 'skiled'; did you mean 'skilled'?\n")

    def test_inputs_that_were_not_read_yet(self, recipe: str) -> None:
        """Without digests there are no keys: said, and nothing is taken for the recipe's."""
        for path in Path(os.environ["MERGEFLOW_HOME"]).glob("digests*"):
            path.unlink()
        done = cached("ls", "--recipe", recipe)
        assert done.out == ""
        assert "input tensors of recipe.yaml have not been read on this machine yet" in done.err
        assert cached("pin", "--recipe", recipe).code == 1

    def test_no_cache_has_no_limit(self, recipe: str) -> None:
        """--no-cache with --cache-limit is a mistake of usage."""
        assert mergeflow("run", recipe, "out", "--no-cache", "--cache-limit", "5GB").code == 2

    def test_a_shared_cache_is_looked_after_here(self, workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """With a URL the commands say that they are about the part on this machine."""
        monkeypatch.setenv("MERGEFLOW_CACHE_LOCAL", str(workplace / "tier"))
        done = cached("du", "--cache", "s3://bucket/prefix")
        assert done.code == 0
        assert done.err.startswith("of s3://bucket/prefix: the part on this machine, ")

    def test_every_command_teaches(self) -> None:
        """Each command's help has an example that begins with its name."""
        import typer.main

        group = typer.main.get_command(app).commands["cache"]  # type: ignore[attr-defined]
        assert set(group.commands) == {"ls", "du", "verify", "gc", "pin", "unpin", "clear"}
        for name, command in group.commands.items():
            assert command.epilog.startswith(f"Example: mergeflow cache {name} ")

    def test_looking_needs_no_heavy_library(self, recipe: str) -> None:
        """ls and du with a recipe load neither torch nor zarr nor numpy."""
        import subprocess

        program = (
            "import sys\nfrom mergeflow.cli.main import main\n"
            f"sys.argv = ['mergeflow', 'cache', 'du', '--recipe', {recipe!r}]\n"
            "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code\n"
            "assert not {'torch', 'zarr', 'numpy'} & set(sys.modules)"
        )
        root = str(Path(mergeflow_root()))
        environment = {**os.environ, "PYTHONPATH": root}
        subprocess.run([sys.executable, "-c", program], check=True, env=environment, stdout=subprocess.DEVNULL)


def mergeflow_root() -> Path:
    import mergeflow

    return Path(mergeflow.__file__).parents[1]
