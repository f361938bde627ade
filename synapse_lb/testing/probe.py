# SPDX-License-Identifier: AGPL-3.0-or-later
"""A Synapse module that shows the inside of its process: timers, the Python heap, this package's objects.

For tests and measurements of a throw-away homeserver only; anybody who reaches the HTTP listener may ask it.

    ThrowawayHomeserver(extra_config={"modules": [..., {"module": "synapse_lb.testing.probe.ProbeModule"}]})

`GET /_synapse/client/synapse_lb_probe` answers with an object as `Reading` has it; with ``?objects=1`` garbage is
collected first and this package's objects are counted, which takes the process some tenths of a second.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import attrs
from twisted.web.resource import Resource

if TYPE_CHECKING:
    from synapse.module_api import ModuleApi

PATH: Final = "/_synapse/client/synapse_lb_probe"
OWN: Final = ("synapse_lb.", "OpenSSL.")
"""What an object's or a timer's module begins with if this package is answerable for it."""

_TOP: Final = 15
"""Lines of what tracemalloc found."""

_TOLD: Final = "probe_at_exit.json"


@attrs.frozen
class Reading:
    """What was seen.

    Attributes:
        delayed_calls: the reactor's, by the name of what is called.
        blocks: of Python's own allocator, in use.
        processor: seconds of processor time that the process has taken.
        threads: how many there are.
        objects: of this package and of pyOpenSSL, by the name of their class; empty if they were not asked for.
        allocated: what tracemalloc says, largest first; empty if it does not run.
    """

    delayed_calls: dict[str, int]
    blocks: int
    processor: float
    threads: int
    objects: dict[str, int] = attrs.field(factory=dict)
    allocated: list[str] = attrs.field(factory=list)

    @property
    def own_delayed_calls(self) -> dict[str, int]:
        """Those for which this package is answerable."""
        return {name: count for name, count in self.delayed_calls.items() if name.startswith(OWN)}


def name_of(call: Callable[..., Any]) -> str:
    """Where a function or a method comes from: its module, and the name of the class and of itself there."""
    while isinstance(call, functools.partial):
        call = call.func
    owner = getattr(call, "__self__", None)
    if owner is not None and not isinstance(owner, type):
        kind = type(owner)
        return f"{kind.__module__}.{kind.__qualname__}.{getattr(call, '__name__', '?')}"
    module = getattr(call, "__module__", None) or type(call).__module__
    return f"{module}.{getattr(call, '__qualname__', type(call).__qualname__)}"


def own_objects(objects: Iterable[object]) -> dict[str, int]:
    """Count this package's objects by their class."""
    counted: Counter[type] = Counter(map(type, objects))
    found: dict[str, int] = {}
    for kind, count in counted.items():
        module = getattr(kind, "__module__", None)
        if isinstance(module, str) and module.startswith(OWN):
            name = f"{module}.{kind.__qualname__}"
            found[name] = found.get(name, 0) + count
    return found


def read(reactor: Any, *, objects: bool = False) -> Reading:
    """Look at this process.

    Args:
        reactor: whose delayed calls are counted.
        objects: collect garbage, and count objects.
    """
    calls = Counter(name_of(call.func) for call in reactor.getDelayedCalls())
    if objects:
        gc.collect()
    return Reading(
        delayed_calls=dict(calls),
        blocks=sys.getallocatedblocks(),
        processor=time.process_time(),
        threads=threading.active_count(),
        objects=own_objects(gc.get_objects()) if objects else {},
        allocated=_allocated() if objects and tracemalloc.is_tracing() else [],
    )


def _allocated() -> list[str]:
    """Return what tracemalloc has seen, by the line that allocated it."""
    top = tracemalloc.take_snapshot().statistics("lineno")[:_TOP]
    return [f"{each.size:,} bytes in {each.count:,} blocks: {each.traceback}" for each in top]


class _Page(Resource):
    """Answers with a `Reading`."""

    isLeaf = True

    def __init__(self, reactor: Any) -> None:
        Resource.__init__(self)
        self._reactor = reactor

    def render_GET(self, request: Any) -> bytes:
        request.setHeader(b"Content-Type", b"application/json")
        reading = read(self._reactor, objects=request.args.get(b"objects") == [b"1"])
        return json.dumps(attrs.asdict(reading)).encode()


class ProbeModule:
    """The module; with ``tracemalloc: N`` in its config allocations are recorded, with N frames each.

    When the reactor has stopped it writes what is left to a file beside Synapse's database; see `told_at_exit`.

    Args:
        config: what `parse_config` returned.
        api: Synapse's module API.
    """

    def __init__(self, config: dict[str, Any], api: ModuleApi) -> None:
        from twisted.internet import reactor

        if config.get("tracemalloc"):
            tracemalloc.start(int(config["tracemalloc"]))
        api.register_web_resource(PATH, _Page(reactor))
        self._told = Path.cwd() / _TOLD
        trigger: Any = reactor
        trigger.addSystemEventTrigger("after", "shutdown", self._tell, reactor)

    @staticmethod
    def parse_config(config: dict[str, Any]) -> dict[str, Any]:
        """Take the module's ``config`` as it is; Synapse calls this."""
        return config

    def _tell(self, reactor: Any) -> None:
        self._told.write_text(json.dumps(attrs.asdict(read(reactor, objects=True))))


def told_at_exit(folder: Path) -> Reading | None:
    """What was left in the process when its reactor had stopped; None if it did not come so far.

    Args:
        folder: of the homeserver.
    """
    try:
        return Reading(**json.loads((folder / _TOLD).read_text()))
    except FileNotFoundError:
        return None
    finally:
        (folder / _TOLD).unlink(missing_ok=True)
