# SPDX-License-Identifier: AGPL-3.0-or-later
"""Server role: notifications (RFC 7641 section 4) and the bodies behind them (RFC 7959 section 2.6).

Every notification is a Confirmable message of its own, and of each observation only one is on its way. It is
delivered when it is acknowledged and, if it takes several blocks, its last block was sent. So nothing is ever
merged or superseded: what the application makes of a failure is its own affair.

    CLIENT                                                     SERVER
      |                                                            |
      | <------   CON [MID=0xaf9c], 2.05, 2:0/1/128, Obs:62354     |
      |                                                            |
      | CON [MID=0x1637], GET, /status-icon, 2:1/0/128    ------>  |
      |                                                            |
      | <------   ACK [MID=0x1637], 2.05 Content, 2:1/1/128        |
      |                                                            |
      | CON [MID=0x1638], GET, /status-icon, 2:2/0/128    ------>  |
      |                                                            |
      | <------   ACK [MID=0x1638], 2.05 Content, 2:2/0/128        |
      |                                                            |
      | ACK [MID=0xaf9c]                                  ------>  |
               (after RFC 7959, figure 12, where the ACK comes at once)

The ACK may come whenever the observer has processed the notification. Until there is a sign of life the message is
retransmitted; while blocks are asked for it is not; after the last block it is again, since the ACK may have been
lost. The body is pinned until then, so that no other response takes its place: a notification of another
observation whose blocks would be asked for in the same words waits for its turn.
"""

from __future__ import annotations

from collections.abc import Callable

from attrs import define

from synapse_lb.coap.block import Block
from synapse_lb.coap.core import Core
from synapse_lb.coap.errors import MessageError, MessageTooLarge, NotificationInFlight, NotObserved
from synapse_lb.coap.events import (
    CoapResponse,
    NotificationDelivered,
    NotificationFailed,
    NotificationFailure,
)
from synapse_lb.coap.exchange import ServerExchange, State, Step
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import OptionNumber, Type, code_to_text, is_success
from synapse_lb.coap.observe import LONGEST_NUMBER
from synapse_lb.coap.options import Options
from synapse_lb.coap.reliability import OnOutcome, Outcome, ReliabilityLayer
from synapse_lb.coap.snapshots import FirstMessage, Snapshots


@define(eq=False)
class Notification:
    """One that is on its way, or waits to be.

    Attributes:
        first: Its message, but for the number.
        sent: Whether it has left; else it waits for another with the same block key.
        acknowledged: Whether its message was acknowledged.
        fetched: Whether its last block was sent; true if there is but one.
        displaced: Whether its body had to go before that.
    """

    first: FirstMessage
    sent: bool = False
    acknowledged: bool = False
    fetched: bool = True
    displaced: bool = False


class Notifications:
    """The notifications of an endpoint.

    Args:
        core: What the layers share.
        reliability: Sends Confirmable messages.
        snapshots: Bodies that are fetched block by block.
        end: Ends an exchange.
    """

    def __init__(
        self,
        core: Core,
        reliability: ReliabilityLayer,
        snapshots: Snapshots,
        end: Callable[[ServerExchange, float], None],
    ) -> None:
        self._core = core
        self._counters = core.counters
        self._reliability = reliability
        self._snapshots = snapshots
        self._end = end

    def prepare(self, exchange: ServerExchange, response: CoapResponse) -> Notification:
        """Return a notification, not sent yet.

        Raises:
            NotObserved: The request is no registration, or was one too many.
            NotificationInFlight: The last one is not delivered yet.
            MessageError: The code is none of success: such a response ends an observation (section 4.2).
            MessageTooLarge: The body is over a limit, or the options leave no room for it.
            OptionError: An option of the response has no wire form.
        """
        if not exchange.asked.registers:
            raise NotObserved(exchange.id)
        if exchange.state is State.NOTIFYING:
            raise NotificationInFlight(exchange.id)
        if not is_success(response.code):
            raise MessageError(f"{code_to_text(response.code)} cannot be notified")
        further = Options.of((OptionNumber.OBSERVE, LONGEST_NUMBER))
        plain = CoapResponse(response.code, response.options.without(OptionNumber.OBSERVE), response.payload)
        first = self._snapshots.begin(exchange, plain, further)
        if first is None:
            self._counters.responses_too_large += 1
            raise MessageTooLarge(len(response.payload), self._core.limits.snapshot_bytes_per_peer)
        return Notification(first, fetched=first.snapshot is None)

    def start(self, exchange: ServerExchange, notification: Notification, now: float) -> None:
        """Send a notification, or let it wait for one whose blocks are asked for in the same words."""
        exchange.advance(Step.NOTIFY)
        exchange.notification = notification
        snapshot = notification.first.snapshot
        if snapshot is None or not self._snapshots.is_held(snapshot):
            self._send(exchange, notification, now)

    def _send(self, exchange: ServerExchange, notification: Notification, now: float) -> None:
        state, first, tuning = exchange.peer, notification.first, self._core.tuning
        notification.sent = True
        snapshot = first.snapshot
        if snapshot is not None:
            snapshot.pinned = True
            snapshot.on_served = lambda block, now: self._block_served(exchange, notification, block, now)
            snapshot.on_lost = lambda now: self._lost(exchange, notification, now)
            self._snapshots.add(snapshot, now)
            self._counters.blocks_sent += 1
        number = state.take_observe_number()
        options = first.options.without(OptionNumber.OBSERVE).with_uint(OptionNumber.OBSERVE, number)
        message_id = state.take_message_id(now, tuning.exchange_lifetime)
        message = Message(Type.CON, first.code, message_id, exchange.token, options, first.payload)
        self._counters.notifications_sent += 1
        exchange.transmission = self._reliability.send(
            state,
            message,
            self._on_outcome(exchange, notification),
            now,
            patience=tuning.notification_processing,
        )

    def abandon(self, exchange: ServerExchange, now: float) -> None:
        """Drop the notification of an exchange, if there is one, and let one that waits for it go."""
        notification, exchange.notification = exchange.notification, None
        if notification is None:
            return
        self._reliability.stop(exchange.transmission, now)
        exchange.transmission = None
        if notification.sent:
            self._snapshots.discard(notification.first.snapshot)
            self._send_waiting(exchange, now)

    # --- what becomes of it ---

    def _on_outcome(self, exchange: ServerExchange, notification: Notification) -> OnOutcome:
        def on_outcome(outcome: Outcome, _message: Message | None, now: float) -> None:
            exchange.transmission = None
            if outcome is Outcome.RESET:
                self._fail(exchange, NotificationFailure.RESET, now)
            elif outcome is Outcome.TIMED_OUT:
                # Blocks were asked for, so it did come through.
                stalled = notification.first.snapshot is not None and notification.fetched
                reason = NotificationFailure.STALLED if stalled else NotificationFailure.TIMED_OUT
                self._fail(exchange, reason, now)
            else:
                notification.acknowledged = True
                self._proceed(exchange, notification, now)

        return on_outcome

    def _block_served(
        self, exchange: ServerExchange, notification: Notification, block: Block, now: float
    ) -> None:
        """Take the request for a further block, which shows that the message has come through."""
        notification.fetched = notification.fetched or not block.more
        self._proceed(exchange, notification, now)

    def _proceed(self, exchange: ServerExchange, notification: Notification, now: float) -> None:
        self._core.timers.cancel(exchange.timer)
        if notification.displaced:
            self._fail(exchange, NotificationFailure.DISPLACED, now)
        elif notification.acknowledged and notification.fetched:
            self._delivered(exchange, notification, now)
        elif notification.fetched and exchange.transmission is not None:
            self._reliability.resume(exchange.transmission, now)
        else:
            if exchange.transmission is not None:
                self._reliability.pause(exchange.transmission, now)
            self._core.later(
                exchange,
                self._core.tuning.notification_processing,
                lambda now: self._fail(exchange, NotificationFailure.STALLED, now),
                now,
            )

    def _delivered(self, exchange: ServerExchange, notification: Notification, now: float) -> None:
        exchange.advance(Step.NOTIFIED)
        exchange.notification = None
        self._counters.notifications_delivered += 1
        self._core.emit(NotificationDelivered(exchange.peer.peer, exchange.id))
        if notification.first.snapshot is not None:
            self._snapshots.release(notification.first.snapshot, now)
            self._send_waiting(exchange, now)

    def _lost(self, exchange: ServerExchange, notification: Notification, now: float) -> None:
        """The body had to go. That is dealt with later, for whoever made it go has not finished."""
        if not notification.fetched:
            notification.displaced = True
            self._core.later(exchange, 0.0, lambda now: self._proceed(exchange, notification, now), now)

    def _fail(self, exchange: ServerExchange, reason: NotificationFailure, now: float) -> None:
        self._end(exchange, now)
        self._counters.notifications_failed += 1
        self._core.emit(NotificationFailed(exchange.peer.peer, exchange.id, reason))
        self._core.tend(exchange.peer, now)

    def _send_waiting(self, ended: ServerExchange, now: float) -> None:
        """Send the notification that has waited for the block key of this exchange."""
        for exchange in ended.peer.serving.values():
            waiting = exchange.notification
            if waiting is not None and not waiting.sent and exchange.key == ended.key:
                self._send(exchange, waiting, now)
                return
