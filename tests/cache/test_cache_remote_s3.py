"""The cache on an object store, by the real protocol: moto's S3 server, and two machines' worth of processes.

A machine is a process of its own with its own HOME, state and local tier; all that two share is the bucket and the
models' bytes.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import boto3
import numpy as np
import obstore
import pytest
from cache_values import key, put_tensor, read_whole
from moto.server import ThreadedMotoServer
from obstore.store import S3Store, from_url
from three_models import RECIPE, three_models

import mergeflow
from mergeflow.cache.layout import CHUNK_BYTES
from mergeflow.cache.open import open_cache
from mergeflow.cache.place import CachePlace
from mergeflow.cache.remote import PART_BYTES
from mergeflow.cache.tiers import TieredCache
from mergeflow.dtypes import BFLOAT16, FLOAT32
from mergeflow.errors import CacheError
from mergeflow.workflow.options import Options

REPOSITORY = Path(mergeflow.__file__).parents[1]
ALWAYS = RECIPE.replace("  skills:\n", "  skills:\n    cache: always\n").replace(
    "  final:\n    merge_method", "  final:\n    cache: always\n    merge_method"
)


@dataclass
class Server:
    """A running server, and the requests it has answered, as ``GET /bucket/...``."""

    endpoint: str
    requests: list[str]

    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "somebody",
            "AWS_SECRET_ACCESS_KEY": "something",
        }


class Noted(logging.Handler):
    """Keeps the requests that the server logs."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.requests.append(record.getMessage().partition('"')[2].partition(" HTTP")[0])


@pytest.fixture(scope="module")
def running() -> Iterator[Server]:
    noted = Noted()
    log = logging.getLogger("werkzeug")
    log.addHandler(noted)
    log.setLevel(logging.INFO)
    log.propagate = False
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=True)
    server.start()
    host, port = server.get_host_and_port()
    yield Server(f"http://{host}:{port}", noted.requests)
    server.stop()
    log.removeHandler(noted)


@pytest.fixture
def server(running: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The server, named in the environment, and nothing else of the environment's that speaks of stores."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "MERGEFLOW_CACHE")):
            monkeypatch.delenv(name)
    for name, value in running.environment().items():
        monkeypatch.setenv(name, value)
    running.requests.clear()
    return running


@pytest.fixture
def url(server: Server, tmp_path: Path) -> str:
    """A prefix of its own for each test, in a bucket that is there."""
    client = boto3.client("s3", endpoint_url=server.endpoint)
    client.create_bucket(Bucket="merges")
    server.requests.clear()
    return f"s3://merges/{hashlib.sha256(str(tmp_path).encode()).hexdigest()[:12]}/cache"


def shared(folder: Path, url: str) -> TieredCache:
    """The cache at `url` as the process of a machine whose local tier is `folder` opens it for the first time."""
    from mergeflow.cache import open as opening

    opening._SHARINGS._found.clear()
    cache = open_cache(CachePlace(folder, url))
    assert isinstance(cache, TieredCache)
    return cache


def names(url: str) -> dict[str, int]:
    """The objects below a prefix, and their sizes."""
    return {meta["path"]: meta["size"] for page in obstore.list(from_url(url)) for meta in page}


def digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.glob("*.safetensors")}


def run_elsewhere(machine: Path, url: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`mergeflow run` as on a machine of its own, where everything it knows lies in `machine`."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MERGEFLOW", "XDG"))}
    environment |= {"HOME": str(machine / "home"), "PYTHONPATH": str(REPOSITORY), "NO_COLOR": "1"}
    command = [sys.executable, "-m", "mergeflow", "run", "recipe.yaml", "out", "--cache", url, *arguments]
    return subprocess.run(command, cwd=machine, env=environment, capture_output=True, text=True, timeout=120)


def test_a_second_machine_computes_nothing(url: str, tmp_path: Path) -> None:
    """What one machine's process computed another's reads from the bucket: the same bytes, and not a tensor computed."""
    reports = []
    for name in ("one", "two"):
        machine = tmp_path / name
        three_models(machine)
        (machine / "recipe.yaml").write_text(ALWAYS)
        done = run_elsewhere(machine, url, "--report", "report.json", "--quiet")
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        reports.append(json.loads((machine / "report.json").read_text()))
        assert list((machine / "home").glob(".cache/mergeflow/shared/merges-*/v1")), "the local tier by default"
    first, second = reports
    assert first["tensors"]["computed"] == first["tensors"]["total"]
    assert second["tensors"]["computed"] == 0
    assert second["bytes"]["cache_written"] == 0
    assert second["keys"] == first["keys"]
    assert digests(tmp_path / "one" / "out") == digests(tmp_path / "two" / "out")


def test_a_plan_knows_what_others_computed(url: str, tmp_path: Path) -> None:
    """What the bucket has counts as known in a plan, by lists alone: nothing is fetched to plan but statistics."""
    three_models(tmp_path)
    (tmp_path / "recipe.yaml").write_text(ALWAYS)
    mergeflow.run(tmp_path / "recipe.yaml", tmp_path / "out", options=Options(cache=CachePlace(tmp_path / "a", url)))
    shared(tmp_path / "b", url)
    plan = mergeflow.plan(
        tmp_path / "recipe.yaml", tmp_path / "other", options=Options(cache=CachePlace(tmp_path / "b", url))
    )
    assert sum(step.computed for step in plan.steps) == 0
    assert not list((tmp_path / "b").rglob("c.*"))


def flip_a_byte(url: str, folder: Path) -> str:
    """Changes a byte of the largest object, and returns its key."""
    store = from_url(url)
    name = max(names(url), key=lambda name: names(url)[name])
    content = bytearray(obstore.get(store, name).bytes())
    content[100] ^= 1
    obstore.put(store, name, bytes(content))
    return name.split("/")[2]


def put_another_tensor(url: str, folder: Path) -> str:
    """Puts a tensor of another shape in the place of the largest one, properly sealed, and returns the key."""
    name = max(names(url), key=lambda name: names(url)[name])
    obstore.delete(from_url(url), name)
    poisoned = name.split("/")[2]
    put_tensor(shared(folder / "stranger", url), poisoned, FLOAT32, (3, 5))
    return poisoned


@pytest.mark.parametrize(
    ("poison", "words"), [(flip_a_byte, "not those of their digest"), (put_another_tensor, "float32[3, 5]")]
)
def test_a_poisoned_entry_is_found_and_replaced(
    url: str, tmp_path: Path, poison: Callable[[str, Path], str], words: str
) -> None:
    """Bytes or a whole entry exchanged in the bucket: the next machine says which entry, computes it, and mends it."""
    three_models(tmp_path)
    (tmp_path / "recipe.yaml").write_text(ALWAYS)

    def run(name: str) -> list[str]:
        shared(tmp_path / name, url)
        how = Options(cache=CachePlace(tmp_path / name, url), state=tmp_path / "state")
        report = mergeflow.run(tmp_path / "recipe.yaml", tmp_path / f"{name}-out", options=how)
        return list(report.warnings)

    assert run("a") == []
    poisoned = poison(url, tmp_path)
    (warning,) = run("b")
    assert poisoned[:12] in warning
    assert words in warning
    assert run("c") == []
    assert digests(tmp_path / "a-out") == digests(tmp_path / "b-out") == digests(tmp_path / "c-out")


def test_entries_are_standard_zarr_nodes(url: str, tmp_path: Path) -> None:
    """zarr-python, over an object store of its own, reads a shared tensor without mergeflow."""
    import zarr
    from zarr.storage import ObjectStore

    values = put_tensor(shared(tmp_path / "a", url), key(1), FLOAT32, (300, 1000))
    assert values.nbytes > CHUNK_BYTES
    store = ObjectStore(S3Store.from_url(f"{url}/v1/01/{key(1)}"), read_only=True)
    array = zarr.open_array(store, mode="r", zarr_format=3)
    assert np.array_equal(np.asarray(array[:]).view(np.uint8).reshape(-1), values, equal_nan=False)


def test_a_large_tensor_goes_and_comes_in_parts(url: str, server: Server, tmp_path: Path) -> None:
    """More than a part: a multipart upload, ranged requests back, the same bytes."""
    shape = (PART_BYTES // 2 + 999, 3)
    values = put_tensor(shared(tmp_path / "a", url), key(1), BFLOAT16, shape)
    there = shared(tmp_path / "b", url)
    server.requests.clear()
    assert np.array_equal(read_whole(there, key(1)), values)
    assert sum("c.0.0" in request for request in server.requests) == 1 + -(-values.nbytes // PART_BYTES)


def test_looking_up_takes_few_requests(url: str, server: Server, tmp_path: Path) -> None:
    """A plan of thousands of keys takes one request for each of 256 folders, however many entries there are."""
    here = shared(tmp_path / "a", url)
    for number in range(0, 1000, 50):
        here.write_record(key(number), {"x": number}, {"op": "norm"})
    here.settle()
    there = shared(tmp_path / "b", url)
    server.requests.clear()
    found = there.lookup([key(number) for number in range(2000)])
    assert len(found) == 20
    assert len(server.requests) == 256
    assert all(request.startswith("GET /merges?list-type=2") for request in server.requests)
    there.fetch(found)
    assert len(server.requests) == 256 + 20
    assert there.read_record(key(50)) == {"x": 50}
    assert len(server.requests) == 256 + 20


def test_a_bucket_that_is_not_there_is_an_error_before_the_run(server: Server, tmp_path: Path) -> None:
    """One sentence with the URL and the reason, exit code 1, and no output."""
    three_models(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    done = run_elsewhere(tmp_path, "s3://no-such-bucket/prefix")
    assert done.returncode == 1
    assert "the cache s3://no-such-bucket/prefix cannot be used: there is no such bucket" in " ".join(
        done.stderr.split()
    )
    assert "Traceback" not in done.stderr
    assert not list((tmp_path / "out").glob("*.safetensors"))


def test_a_store_out_of_reach_costs_a_warning(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody answers at the endpoint: the run does with the local tier, says so once, and ends well, --strict or not."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    three_models(tmp_path)
    (tmp_path / "recipe.yaml").write_text(ALWAYS)
    how = Options(cache=CachePlace(tmp_path / "a", url), strict=True)
    report = mergeflow.run(tmp_path / "recipe.yaml", tmp_path / "out", options=how)
    (warning,) = report.warnings
    assert warning.startswith(f"the cache {url} does not answer")
    again = mergeflow.run(tmp_path / "recipe.yaml", tmp_path / "again", options=how)
    assert again.tensors.computed == 0


def test_an_endpoint_without_encryption_must_be_allowed(
    url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """http in the endpoint and nothing that allows it: the variable that does is named."""
    monkeypatch.delenv("AWS_ALLOW_HTTP")
    with pytest.raises(CacheError, match="AWS_ALLOW_HTTP=true"):
        shared(tmp_path / "a", url).check()


def test_without_credentials_it_says_so(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No credentials in the environment: not a riddle about an address that nobody knows."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(CacheError, match="cannot be used: Missing AccessKeyId"):
        shared(tmp_path / "a", url).check()
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(CacheError, match="no credentials were found in the environment"):
        shared(tmp_path / "a", url).lookup([key(1)])


def test_a_cluster_worker_opens_its_own_tier(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A place travels as its URL: each machine that opens it uses the local tier of its own environment."""
    sent = pickle.dumps(Options(cache=url).cache)
    for name in ("one", "two"):
        monkeypatch.setenv("HOME", str(tmp_path / name))
        cache = open_cache(pickle.loads(sent))
        assert cache.root.is_relative_to(tmp_path / name / ".cache/mergeflow/shared")
    monkeypatch.setenv("MERGEFLOW_CACHE_LOCAL", str(tmp_path / "fast-disk"))
    assert open_cache(url).root == tmp_path / "fast-disk"
    assert pickle.loads(pickle.dumps(open_cache(url))).root == tmp_path / "fast-disk"


def test_planning_does_not_load_obstore_for_a_folder(tmp_path: Path) -> None:
    """obstore is an extra: only a URL asks for it."""
    three_models(tmp_path)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    program = """
import sys, mergeflow
mergeflow.plan("recipe.yaml", "out", options=mergeflow.Options(cache="cache"))
print(sorted(name for name in sys.modules if name in ("obstore", "mergeflow.cache.tiers", "torch", "zarr")))
"""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == "[]", done.stderr
