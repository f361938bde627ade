# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb bench wire`: the bytes and packets of what a Matrix client does, over CoAP and over HTTPS.

A real Synapse with both listeners does a fixed list of operations (`cli/wire/operations.py`). Over CoAP a relay counts
the datagrams (`cli/wire/coap.py`), over HTTPS the kernel counts the segments (`cli/https_meter.py`).
"""

from __future__ import annotations

import argparse
import json
from importlib import metadata
from typing import TYPE_CHECKING, Final

from synapse_lb.cli.errors import EXIT_OK, CommandError
from synapse_lb.cli.https_meter import MeterError, Wire, wire_is_measurable
from synapse_lb.cli.interruptible import heed_sigterm, until_interrupted
from synapse_lb.cli.terminal import Terminal

if TYPE_CHECKING:
    from twisted.internet.defer import Deferred

    from synapse_lb.cli.main import Subparsers
    from synapse_lb.cli.wire.coap import Mode
    from synapse_lb.cli.wire.report import Report
    from synapse_lb.cli.wire.scene import Scene

ROOMS: Final = 50
_FAREWELL: Final = "synapse-lb bench: interrupted; Synapse has been stopped and removed"
MODES: Final = ("v1", "deflate", "x1")
"""Names of the modes, as `cli/wire/coap.py` has them: that module is not imported for `--help`."""

_DESCRIPTION = """\
Starts a real Synapse in a temporary folder with the low-bandwidth listener and an HTTPS listener, does what a Matrix
client does over both, and counts packets and bytes as they are on the wire. Takes about a minute. Needs Synapse itself:
pip install 'synapse-lb[server]'.
"""


def add_parser(subparsers: Subparsers) -> None:
    """Add `wire` to `bench`."""
    parser = subparsers.add_parser(
        "wire",
        help="bytes and packets of what a client does, over CoAP and HTTPS",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--mode",
        action="append",
        choices=MODES,
        help="how the CoAP client speaks; may be repeated (all: " + ", ".join(MODES) + ")",
    )
    parser.add_argument(
        "--rooms", type=int, default=ROOMS, metavar="N", help=f"rooms of the initial sync ({ROOMS})"
    )
    parser.add_argument("--no-https", action="store_true", help="leave HTTPS out")
    parser.add_argument(
        "--explain", action="store_true", help="say what the bytes are for: headers, options, payload"
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="write one JSON object instead of the table")
    form.add_argument("--markdown", action="store_true", help="write the table as Markdown")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, terminal: Terminal) -> Deferred[int]:
    """Measure.

    Returns:
        A Deferred of the exit status; it fails with a `CommandError`.

    Raises:
        CommandError: Synapse is missing or did not start, or could not be prepared.
    """
    from synapse_lb.cli.wire.operations import Sizes
    from synapse_lb.cli.wire.scene import Scene, SceneFailed
    from synapse_lb.testing.throwaway import HomeserverFailed, SynapseMissing

    heed_sigterm()
    if arguments.rooms < Sizes().active_rooms:
        raise CommandError(f"--rooms: at least {Sizes().active_rooms}")
    scene = Scene(Sizes(rooms=arguments.rooms), terminal.error)
    try:
        scene.open()
    except SynapseMissing as error:
        raise CommandError(
            "bench wire needs a Synapse to measure, and there is none in this Python environment: "
            "pip install 'synapse-lb[server]'"
        ) from error
    except (HomeserverFailed, SceneFailed) as error:
        raise CommandError(str(error)) from error
    return until_interrupted(_finish(arguments, terminal, scene), terminal, _FAREWELL)


async def _finish(arguments: argparse.Namespace, terminal: Terminal, scene: Scene) -> int:
    from synapse_lb.cli.wire.coap import MODES as KNOWN
    from synapse_lb.cli.wire.operations import UnexpectedAnswer
    from synapse_lb.cli.wire.relay import CountsDiffer
    from synapse_lb.cli.wire.scene import SceneFailed
    from synapse_lb.client.errors import ClientError

    modes = [mode for mode in KNOWN if arguments.mode is None or mode.name in arguments.mode]
    try:
        report = await measure(
            scene, modes, terminal, https=not arguments.no_https, explain=arguments.explain
        )
    except (MeterError, ClientError, SceneFailed, UnexpectedAnswer, CountsDiffer) as error:
        log = scene.homeserver.log_tail()
        raise CommandError(f"{error}\n--- Synapse's last lines ---\n{log}") from error
    finally:
        scene.close()
    if arguments.json:
        terminal.write(json.dumps(report.as_json(), indent=2) + "\n")
    else:
        terminal.write(report.markdown() if arguments.markdown else report.table())
        terminal.write("\n" + report.explanation() if report.datagrams else "")
    return EXIT_OK


async def measure(
    scene: Scene, modes: list[Mode], terminal: Terminal, *, https: bool, explain: bool
) -> Report:
    """Measure everything.

    Args:
        scene: the homeserver, open.
        modes: how the CoAP client speaks.
        terminal: where to say what is done, and whose reactor is used.
        https: whether HTTPS is measured too, if this system can.
        explain: whether the report says what the bytes are for.

    Raises:
        MeterError, ClientError, SceneFailed, UnexpectedAnswer, CountsDiffer: it could not be measured.
    """
    from synapse_lb.cli.wire.coap import CoapSide
    from synapse_lb.cli.wire.goals import verdicts
    from synapse_lb.cli.wire.https import HttpsSide
    from synapse_lb.cli.wire.report import HTTPS_TITLES, Column, Report

    over_https: dict[str, dict[str, Wire]] = {}
    if https and wire_is_measurable():
        for name in HTTPS_TITLES:
            over_https[name] = HttpsSide(scene, name == "gzip", terminal.error).measure()
    counted = {
        mode.name: await CoapSide(terminal.reactor, scene, mode, terminal.error).measure() for mode in modes
    }
    over_coap = {
        name: {key: each.traffic for key, each in figures.items()} for name, figures in counted.items()
    }
    datagrams = {
        name: {key: each.datagrams for key, each in figures.items()} for name, figures in counted.items()
    }
    columns = [Column(mode.name, mode.title, over_coap[mode.name]) for mode in modes]
    columns += [Column(name, HTTPS_TITLES[name], figures) for name, figures in over_https.items()]
    return Report(
        metadata.version("matrix-synapse"),
        scene.sizes,
        columns,
        verdicts(over_coap, over_https),
        datagrams if explain else {},
    )
