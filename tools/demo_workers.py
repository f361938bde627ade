# SPDX-License-Identifier: AGPL-3.0-or-later
"""`make demo-workers`: the demo's conversation, spread over two workers of a real, throw-away Synapse.

PostgreSQL, Redis, a main process and two workers are started with the configuration of ``contrib/workers``. alice
talks to worker1 and bob to worker2, over CoAP; what neither serves goes to the main process. Everything ends with the
command.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from synapse_lb.cli.conversation import Answer, ConversationFailed, Names, Outcome, Step, converse
from synapse_lb.cli.errors import EXIT_FAILURE, EXIT_INTERRUPTED, EXIT_OK, CommandError
from synapse_lb.cli.interruptible import heed_sigterm, until_interrupted
from synapse_lb.cli.main import run_reactor
from synapse_lb.cli.terminal import Terminal
from synapse_lb.client.client import LowBandwidthClient
from synapse_lb.client.errors import ClientError
from synapse_lb.msc3079.messages import NO_BODY
from synapse_lb.testing.throwaway_services import ServiceFailed, ServicesMissing
from synapse_lb.testing.throwaway_workers import WORKERS, ThrowawayWorkers, WorkersFailed
from synapse_lb.txdtls.context import ClientVerification

TEMPLATES: Final = Path(__file__).resolve().parent.parent / "contrib" / "workers"
NAMES: Final = Names("alice", "bob")
LAST_WORDS: Final = "Nothing to be seen here any more."
FAREWELL: Final = (
    "make demo-workers: interrupted; PostgreSQL, Redis and Synapse have been stopped and removed"
)
PATIENCE: Final = 60.0
"""s: for one request, and until an observer has heard of a message."""

_SERVED: Final = re.compile(r"synapse\.access\.(?:http|coap)\.\S+ .*Processed request.* /_matrix/client/")


class Demo:
    """One demonstration.

    Args:
        reactor: Twisted's reactor.
        homeserver: runs already.
    """

    def __init__(self, reactor: Any, homeserver: ThrowawayWorkers) -> None:
        self._reactor = reactor
        self._homeserver = homeserver
        verification = ClientVerification.ca_file(str(homeserver.certificate_path))
        self._clients = [
            LowBandwidthClient(reactor, homeserver.coaps_url(worker), verification=verification)
            for worker in WORKERS
        ]

    async def run(self) -> None:
        """Hold the conversation, and let bob observe what alice says afterwards.

        Raises:
            ConversationFailed, ClientError: something was not as it should be.
        """
        try:
            outcome = await self._talk()
            await self._push(outcome)
        finally:
            for client in self._clients:
                await client.close()
        self._say_who_served()

    async def _talk(self) -> Outcome:
        steps = converse(NAMES)
        step = next(steps)
        while True:
            body = NO_BODY if step.body is None else step.body
            response = await self._clients[step.speaker].request(
                step.method, step.path, step.query, body, step.token, timeout=PATIENCE
            )
            self._show(step, response.status)
            if response.status != 200:
                raise ConversationFailed(f"{step.method} {step.path}: {response.status} {response.body}")
            try:
                step = steps.send(Answer(response.status, response.body))
            except StopIteration as end:
                outcome: Outcome = end.value
                return outcome

    async def _push(self, outcome: Outcome) -> None:
        """What is said at one worker is pushed by the other."""
        alice, bob = self._clients
        heard: Deferred[None] = Deferred()

        def processed(body: Any) -> None:
            if LAST_WORDS in str(body) and not heard.called:
                heard.callback(None)

        observation = bob.observe_sync(None, processed, token=outcome.tokens[1])
        while observation.since is None:
            await deferLater(self._reactor, 0.01)
        path = f"/_matrix/client/v3/rooms/{outcome.room_id}/send/m.room.message/last"
        message = {"msgtype": "m.text", "body": LAST_WORDS}
        await alice.request("PUT", path, json=message, token=outcome.tokens[0], timeout=PATIENCE)
        await heard.addTimeout(PATIENCE, self._reactor)
        await observation.stop()
        say(f"bob, who observes /sync at worker2, was pushed what alice said at worker1: {LAST_WORDS!r}")

    def _show(self, step: Step, status: int) -> None:
        name, worker = (NAMES.first, NAMES.second)[step.speaker], WORKERS[step.speaker]
        say(f"{name:5} > {worker}  {step.method:4} {step.title:32} {status}  {step.does}")

    def _say_who_served(self) -> None:
        for name, process in self._homeserver.processes.items():
            lines = [line for line in process.log_text.splitlines() if _SERVED.search(line)]
            over = "over CoAP" if name in WORKERS else "that the workers passed on over HTTP"
            say(f"{name} served {len(lines)} request{'' if len(lines) == 1 else 's'} {over}")


def say(text: str) -> None:
    """Print at once: what is started writes to the same screen."""
    print(text, flush=True)


def main(terminal: Terminal | None = None) -> int:
    """Run the demonstration.

    Args:
        terminal: where errors go; None takes this process's own streams.

    Returns:
        The exit status.
    """
    terminal = terminal or Terminal.of_process()
    homeserver = ThrowawayWorkers(TEMPLATES)
    try:
        heed_sigterm()
        say("Starting PostgreSQL, Redis, and a Synapse of a main process and two workers (half a minute)")
        homeserver.start()
        return run_reactor(until_interrupted(demonstrate(terminal, homeserver), terminal, FAREWELL), terminal)
    except ServicesMissing as error:
        terminal.error(f"make demo-workers cannot run. {error}")
    except (ServiceFailed, WorkersFailed) as error:
        terminal.error(f"make demo-workers: {error}")
    except (KeyboardInterrupt, CommandError) as error:
        # While the processes start, and before the reactor has handlers of its own.
        homeserver.stop()
        terminal.error(f"\n{FAREWELL}")
        return EXIT_INTERRUPTED if isinstance(error, KeyboardInterrupt) else error.exit_status
    return EXIT_FAILURE


async def demonstrate(terminal: Terminal, homeserver: ThrowawayWorkers) -> int:
    """Hold the conversation, and end the homeserver whatever comes of it.

    Returns:
        The exit status.
    """
    try:
        await Demo(terminal.reactor, homeserver).run()
    except (ConversationFailed, ClientError, TimeoutError) as error:
        terminal.error(f"make demo-workers: {error}")
        return EXIT_FAILURE
    finally:
        homeserver.stop()
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
