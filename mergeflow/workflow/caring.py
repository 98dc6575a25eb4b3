"""What a run does for its cache: it says what it needs, and afterwards sees to it that the cache is within its limit.

    with cared_for(options, compiled.graph, listen):      a lease on every key of the recipe; its entries count as used
        make_room(options, listen, coming=plan.cache_bytes_written)
        ...
                                                          the lease ends; what was used least goes

None of it can fail a run, nor change a byte of its outputs: values that are not there are computed.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from mergeflow.cache.care import touch
from mergeflow.cache.folders import delete
from mergeflow.cache.index import index_file
from mergeflow.cache.leases import abandoned_leases, leasing
from mergeflow.cache.limit import Removed, evict, room
from mergeflow.cache.open import open_local
from mergeflow.errors import CacheError, counted
from mergeflow.execute.events import Listener, Warned
from mergeflow.graph.nodes import Node
from mergeflow.graph.plan import computed_keys
from mergeflow.workflow.options import LIMIT_VARIABLE, Options

# A file system's clock is behind the processor's by up to one of its ticks.
TICK_NS = 50_000_000


@contextmanager
def cared_for(options: Options, nodes: Iterable[Node], listen: Listener) -> Iterator[None]:
    """While the block runs nobody removes what it may need of the cache; when it ended well, the limit is kept.

    Args:
        nodes: of the whole recipe, so that planning again needs nothing that is not named.
    """
    if options.cache is None:
        yield
        return
    cache = open_local(options.cache)
    keys = frozenset(computed_keys(nodes))
    began = time.time_ns() - TICK_NS
    for path in abandoned_leases(cache.folders):
        delete(path)
    with leasing(cache.folders, keys):
        touch(cache, keys)
        yield
    removed = make_room(options, listen)
    # Of inputs that were hashed on the way the keys were not known in the beginning; the times say what was of use.
    lost = sum(1 for key, used in removed.last_used.items() if key in keys or used >= began)
    if lost:
        limit = f"the cache's limit of {_size(removed.limit)}"
        how = f"raise it with --cache-limit or ${LIMIT_VARIABLE}"
        listen(Warned(f"{counted(lost, 'value')} of this recipe did not fit into {limit}, and went; {how}"))


def make_room(options: Options, listen: Listener, *, coming: int = 0) -> Removed:
    """Removes what was used least and nobody needs, until `coming` bytes more are within the limit, if that can be."""
    if options.cache is None:
        return Removed()
    cache = open_local(options.cache)
    try:
        removed = evict(cache, options.cache_limit, index_of(options), coming=coming)
    except (OSError, CacheError):  # a disk that fails, or one we may not write: whoever writes says so
        return Removed()
    for path in removed.doubts:
        listen(Warned(f"{path} cannot be read, so nothing is removed from the cache to keep its limit; delete it"))
    return removed


def limit_room(options: Options, reserved: int = 0) -> int | None:
    """Bytes that a run may still keep, within the limit and on the disk; None where nobody can say.

    Args:
        reserved: bytes of outputs that it is going to write.
    """
    if options.cache is None:
        return None
    try:
        return room(open_local(options.cache), options.cache_limit, index_of(options), reserved=reserved)
    except (OSError, CacheError):
        return None


def index_of(options: Options) -> Path | None:
    """Where this machine keeps its index of the cache; None without a cache."""
    return None if options.cache is None else index_file(options.state, open_local(options.cache).root)


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.3g} MB"
