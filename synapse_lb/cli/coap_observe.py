# SPDX-License-Identifier: AGPL-3.0-or-later
"""`synapse-lb coap --observe`: writes notifications as they come (RFC 7641), until it is interrupted."""

from __future__ import annotations

import argparse

from twisted.internet.defer import Deferred

from synapse_lb.cli.coap_options import code_line
from synapse_lb.cli.coap_output import Narration, Output
from synapse_lb.cli.coap_request import build_request, parse_url
from synapse_lb.cli.coap_transfer import exit_status, make_client, out_of_time
from synapse_lb.cli.errors import EXIT_OK, EXIT_STATUS_CODE, CommandError
from synapse_lb.cli.terminal import Terminal
from synapse_lb.client import errors
from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.observation import Change, Observation, State
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import OptionNumber

_NOTES = {
    State.REGISTERING: "Registering",
    State.OBSERVING: "Observing",
    State.POLLING: "The server does not notify; asking again and again",
}


async def observe(arguments: argparse.Namespace, terminal: Terminal) -> int:
    """Observe what the arguments say and write each notification.

    Returns:
        The exit status: 0 when it was interrupted, or has written as many as were asked for.

    Raises:
        CommandError: it cannot be observed (any more), or what comes cannot be written.
    """
    uri = parse_url(arguments.url)
    request = build_request(arguments, uri, terminal)
    client = make_client(arguments, uri, terminal)
    narration = Narration(terminal, arguments.verbose)
    output = Output(terminal, arguments.output, arguments.include, arguments.json, many=True)
    try:
        work = Deferred.fromCoroutine(_observe(client, request, narration, output, terminal, arguments.count))
        if arguments.max_time is not None:
            work.addTimeout(arguments.max_time, terminal.reactor, out_of_time)
        await work
    except errors.ObservationEnded as error:
        narration.response(error.response)
        output.write_response(error.response)
        message = f"the server answered {code_line(error.response.code)}"
        raise CommandError(message, EXIT_STATUS_CODE) from error
    except errors.ClientError as error:
        raise CommandError(str(error), exit_status(error)) from error
    finally:
        await client.close()
        if client.counters.datagrams_sent:
            narration.traffic("In all", client.counters)
    return EXIT_OK


async def _observe(
    client: LowBandwidthClient,
    request: CoapRequest,
    narration: Narration,
    output: Output,
    terminal: Terminal,
    count: int | None,
) -> None:
    # By itself the observation would wait until there is a server; a wrong address is to be heard of at once.
    narration.connected(await client.connect())
    narration.request(
        CoapRequest(
            request.code,
            request.options.replacing(OptionNumber.OBSERVE, b""),
            request.payload,
            request.confirmable,
        )
    )
    written = 0

    def write(response: CoapResponse) -> None:
        nonlocal written
        narration.response(response)
        output.write_response(response)
        written += 1
        if written == count:
            observation.stop()

    observation: Observation = client.raw_observe(
        request, write, on_change=lambda change: narration.note(_note(change))
    )
    take_back = terminal.on_interrupt(observation.stop)
    try:
        await observation.done
    finally:
        take_back()
        if observation.since is not None:
            narration.note(f"The next place is {observation.since}")


def _note(change: Change) -> str:
    if change.state is State.WAITING:
        return f"{change.error}; trying again in {change.delay or 0.0:.1f} s"
    if change.state is State.ENDED:
        return "Ended" if change.error is None else f"Ended: {change.error}"
    return _NOTES[change.state]
