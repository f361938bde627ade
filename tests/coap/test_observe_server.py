# SPDX-License-Identifier: AGPL-3.0-or-later
"""The server role of RFC 7641: registrations, and notifications one at a time, confirmed in good time."""

from __future__ import annotations

from synapse_lb.coap.errors import (
    ExchangeUnknown,
    MessageError,
    MessageTooLarge,
    NotificationInFlight,
    NotObserved,
    OptionError,
)
from synapse_lb.coap.events import (
    CoapResponse,
    NotificationDelivered,
    NotificationFailed,
    NotificationFailure,
    RequestCancelled,
    RequestReceived,
    ResponseUndelivered,
)
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits, Tuning
from tests.coap.lockstep import Script
from tests.coap.observing import MAX_AGE, ObserveCase, content


class Registration(ObserveCase):
    """Section 4.1."""

    def tearDown(self) -> None:
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.script.events()
        self.script.nothing_leaks()

    def test_the_application_declines(self) -> None:
        """An answer without Observe, piggybacked as ever, though the application gives one."""
        exchange = self.registers()
        self.responds(exchange, CoapResponse(Code.CONTENT, Options.of((OptionNumber.OBSERVE, b"\x05")), b"x"))
        self.script.endpoint_sends('ACK [1] 2.05 Token=4a "x"')
        self.refused(ExchangeUnknown, exchange)

    def test_the_request_is_as_it_came(self) -> None:
        self.script.peer_sends("CON [1] GET /r ?since=s1 Token=4a Observe=0 Accept=60")
        request = self.script.event(RequestReceived).request
        self.assertEqual(request.options.get(OptionNumber.OBSERVE), b"")
        self.assertEqual(request.options.get(OptionNumber.URI_QUERY), b"since=s1")
        self.assertEqual(request.options.get_uint(OptionNumber.ACCEPT), 60)

    def test_fetch(self) -> None:
        """RFC 8132 section 2.4: FETCH may be observed, and its payload belongs to the registration."""
        self.script.peer_sends('CON [1] FETCH /r Token=4a Observe=0 "{}"')
        event = self.script.event(RequestReceived)
        self.assertEqual(event.request.payload, b"{}")
        self.notifies(event.exchange)
        self.script.endpoint_sends("ACK [1]")
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=2 "one"')

    def test_fetch_in_blocks(self) -> None:
        """The registration is whole with its last block, whose Block1 the first notification repeats."""
        script = self.script
        script.peer_sends("CON [1] FETCH /r Token=01 Observe=0 1:0/1/16", b"a" * 16)
        script.endpoint_sends("ACK [1] 2.31 Token=01 1:0/1/16")
        script.peer_sends("CON [2] FETCH /r Token=02 Observe=0 1:1/0/16", b"b")
        event = script.event(RequestReceived)
        self.assertEqual(event.request.payload, b"a" * 16 + b"b")
        self.notifies(event.exchange)
        script.endpoint_sends("ACK [2]")
        script.endpoint_sends('CON [$a] 2.05 Token=02 Observe=2 1:1/0/16 "one"')
        script.peer_sends("ACK [$a]")
        script.event(NotificationDelivered)
        self.notifies(event.exchange)
        script.endpoint_sends('CON [$b] 2.05 Token=02 Observe=3 "one"')

    def test_methods_that_cannot_be_observed(self) -> None:
        """Section 2: Observe means nothing there, and the application does not get to see it."""
        for number, method in enumerate(("POST", "PUT", "DELETE", "PATCH", "IPATCH")):
            self.script.peer_sends(f"CON [{number}] {method} /r Token=0{number} Observe=0")
            event = self.script.event(RequestReceived)
            self.assertNotIn(OptionNumber.OBSERVE, event.request.options)
            self.refused(NotObserved, event.exchange)

    def test_values_that_mean_nothing(self) -> None:
        """Other values, and such as are too long, are ignored, for the option is elective."""
        for number, value in enumerate(("2", "16777215", "0x00000000")):
            self.script.peer_sends(f"CON [{number}] GET /r Token=0{number} Observe={value}")
            event = self.script.event(RequestReceived)
            self.assertNotIn(OptionNumber.OBSERVE, event.request.options)
            self.refused(NotObserved, event.exchange)

    def test_plain_request(self) -> None:
        self.refused(NotObserved, self.registers("CON [1] GET /r Token=4a"))

    def test_empty_ack_before_the_first_notification(self) -> None:
        """It has left by itself when the application takes its time; then none goes with the notification."""
        exchange = self.registers()
        self.script.passes(1.5)
        self.script.endpoint_sends("ACK [1]")
        self.script.passes(3600)
        self.notifies(exchange)
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=2 "one"')

    def test_non_confirmable(self) -> None:
        """Its notifications are Confirmable all the same, and it has no ACK."""
        self.notifies(self.registers("NON [1] GET /r Token=4a Observe=0"))
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=2 "one"')

    def test_a_copy_is_answered_as_before(self) -> None:
        exchange = self.observes()
        self.script.peer_sends("CON [1] GET /r Token=4a Observe=0")
        self.script.endpoint_sends("ACK [1]")
        self.script.no_event()
        self.notifies(exchange)
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=3 "one"')

    def test_a_copy_that_comes_very_late(self) -> None:
        """After EXCHANGE_LIFETIME it is a registration again; no entry is kept for as long as the observation."""
        exchange = self.observes()
        self.script.passes(300)
        self.script.peer_sends("CON [1] GET /r Token=4a Observe=0")
        self.assertEqual(self.script.event(RequestCancelled).exchange, exchange)
        self.script.event(RequestReceived)

    def test_idle(self) -> None:
        """While nothing happens, nothing is sent, no timer is set, and nothing is forgotten."""
        exchange = self.observes()
        self.script.passes(1000)
        self.assertIsNone(self.script.endpoint.next_timer())
        self.script.passes(30 * 86400)
        self.script.endpoint_is_quiet()
        self.notifies(exchange)
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=3 "one"')

    def test_two_of_one_peer(self) -> None:
        """They are told apart by their tokens, and their numbers rise together."""
        one, two = self.observes(), self.registers("CON [2] GET /r Token=4b Observe=0")
        self.notifies(two)
        self.script.endpoint_sends("ACK [2]")
        self.script.endpoint_sends('CON [$a] 2.05 Token=4b Observe=3 "one"')
        self.notifies(one, content("two"))
        self.script.endpoint_sends('CON [$b] 2.05 Token=4a Observe=4 "two"')
        self.script.peer_sends("ACK [$b]")
        self.assertEqual(self.script.event(NotificationDelivered).exchange, one)
        self.script.peer_sends("ACK [$a]")
        self.assertEqual(self.script.event(NotificationDelivered).exchange, two)

    def test_no_response_does_not_silence_notifications(self) -> None:
        """RFC 7967: who registers wants them."""
        exchange = self.registers("CON [1] GET /r Token=4a Observe=0 No-Response=2")
        self.notifies(exchange)
        self.script.endpoint_sends("ACK [1]")
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=2 "one"')


class Notifying(ObserveCase):
    """Sections 4.2 to 4.5: what may be sent, and when."""

    def tearDown(self) -> None:
        self.script.endpoint.drop_peer("peer", self.script.now)
        self.script.events()
        self.script.nothing_leaks()

    def test_one_at_a_time(self) -> None:
        """Section 4.5.1; the exchange is not hurt by the attempt."""
        exchange = self.registers()
        self.notifies(exchange)
        self.refused(NotificationInFlight, exchange)
        self.script.endpoint_sends("ACK [1]")
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=2 "one"')
        self.script.peer_sends("ACK [$a]")
        self.script.event(NotificationDelivered)
        self.notifies(exchange, content("two"))
        self.script.endpoint_sends('CON [$b] 2.05 Token=4a Observe=3 "two"')
        self.assertNotEqual(self.script.bound["$a"], self.script.bound["$b"])

    def test_the_number_is_ours(self) -> None:
        """An Observe option of the application is replaced, its other options are sent."""
        options = MAX_AGE.with_option(OptionNumber.OBSERVE, b"\x63")
        self.notifies(self.registers(), CoapResponse(Code.CONTENT, options, b"x"))
        self.script.endpoint_sends("ACK [1]")
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=2 Max-Age=15 "x"')

    def test_numbers_wrap(self) -> None:
        """Section 4.4: after 2^24 - 1 comes 0, as three bytes and none."""
        exchange = self.observes()
        self.script.endpoint._core.peers["peer"].observe_number = 0xFFFFFF
        for line, value in (
            ("Observe=16777215", b"\xff\xff\xff"),
            ("Observe=0", b""),
            ("Observe=1", b"\x01"),
        ):
            self.notifies(exchange)
            sent = self.script.endpoint_sends(f'CON [$m{value.hex()}] 2.05 Token=4a {line} "one"')
            self.assertEqual(sent.options.get(OptionNumber.OBSERVE), value)
            self.script.peer_sends(f"ACK [{sent.message_id}]")
            self.script.event(NotificationDelivered)

    def test_only_success(self) -> None:
        """Section 4.2: a response of another class is no notification."""
        exchange = self.registers()
        for code in (Code.NOT_FOUND, Code.INTERNAL_SERVER_ERROR, Code.GET, 0xE0):
            self.refused(MessageError, exchange, content(code=code))
        self.notifies(exchange)
        self.assertEqual(len(self.script.datagrams()), 2)

    def test_options_without_wire_form(self) -> None:
        exchange = self.registers()
        response = CoapResponse(Code.CONTENT, Options.of((OptionNumber.ETAG, bytes(70_000))))
        self.refused(OptionError, exchange, response)
        self.script.endpoint_is_quiet()
        self.notifies(exchange)
        self.assertEqual(len(self.script.datagrams()), 2)

    def test_too_large(self) -> None:
        """At `snapshot_bytes_per_peer` it goes, over it not; nor if the options leave no room for a block."""
        self.script = Script(self, limits=Limits(snapshot_bytes_per_peer=2000))
        exchange = self.registers()
        self.refused(MessageTooLarge, exchange, content("x" * 2001))
        crowded = CoapResponse(Code.CONTENT, Options.of((OptionNumber.LOCATION_PATH, bytes(1200))), b"x")
        self.refused(MessageTooLarge, exchange, crowded)
        self.assertEqual(self.script.endpoint.counters.responses_too_large, 2)
        self.script.endpoint_is_quiet()
        self.notifies(exchange, content("x" * 2000))
        self.assertEqual(len(self.script.datagrams()), 2)

    def test_of_nothing(self) -> None:
        self.refused(ExchangeUnknown, 99)

    def test_of_ours(self) -> None:
        """A request of ours cannot be answered, whatever it registers for."""
        endpoint = self.script.endpoint
        from_us = self.registers()
        self.assertRaises(ExchangeUnknown, endpoint.notify, from_us + 1, content(), self.script.now)

    def test_counters(self) -> None:
        exchange = self.observes()
        self.notifies(exchange)
        (message,) = self.script.datagrams()
        self.script.peer_sends(f"RST [{message.message_id}]")
        self.script.event(NotificationFailed)
        counters = self.script.endpoint.counters
        self.assertEqual(counters.notifications_sent, 2)
        self.assertEqual(counters.notifications_delivered, 1)
        self.assertEqual(counters.notifications_failed, 1)
        self.assertEqual(counters.resets_received, 1)


class Patience(ObserveCase):
    """The observer may acknowledge when it has processed the notification."""

    def tearDown(self) -> None:
        self.script.nothing_leaks()

    def last(self, exchange: int) -> None:
        """The server ends the observation, and the observer knows it."""
        self.responds(exchange, content("bye", Code.SERVICE_UNAVAILABLE))
        self.script.endpoint_sends('CON [$last] 5.03 Token=4a "bye"')
        self.script.peer_sends("ACK [$last]")

    def test_it_is_repeated_meanwhile(self) -> None:
        """Ever less often, until the ACK comes."""
        exchange = self.observes()
        self.notifies(exchange)
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=3 "one"')
        self.assertIn(self.waits(100), range(4, 8))
        self.assertEqual(self.waits(19), 0)
        self.script.peer_sends("ACK [$a]")
        self.script.event(NotificationDelivered)
        self.assertEqual(self.waits(1000), 0)
        self.last(exchange)

    def test_until_it_is_over(self) -> None:
        """All retransmissions are spent, and `notification_processing` seconds too."""
        exchange = self.observes()
        self.notifies(exchange)
        self.waits(119.9)
        self.script.no_event()
        self.waits(0.1)
        self.failed(exchange, NotificationFailure.TIMED_OUT)
        self.assertEqual(self.script.endpoint.counters.timeouts, 1)
        self.assertEqual(self.waits(1000), 0)

    def test_retransmissions_that_take_longer(self) -> None:
        """It fails when both are spent: here the retransmissions of RFC 7252 take 62 to 93 s."""
        tuning = Tuning(notification_processing=10.0, adaptive_rto=False)
        self.script = Script(self, tuning=tuning)
        exchange = self.observes()
        self.notifies(exchange)
        self.assertEqual(self.waits(61), 5)
        self.script.no_event()
        self.waits(32)
        self.failed(exchange, NotificationFailure.TIMED_OUT)

    def test_late_acknowledgement(self) -> None:
        """After that it means nothing."""
        exchange = self.observes()
        self.notifies(exchange)
        (message,) = self.script.datagrams()
        self.waits(120)
        self.failed(exchange, NotificationFailure.TIMED_OUT)
        self.script.peer_sends(f"ACK [{message.message_id}]")
        self.script.no_event()
        self.assertEqual(self.script.endpoint.counters.unmatched, 1)

    def test_it_keeps_nobody_waiting(self) -> None:
        """NSTART is 1: once it was repeated, other messages go."""
        self.script = Script(self, tuning=Tuning(nstart=1))
        exchange = self.observes()
        self.script.peer_sends("CON [2] GET /other Token=02")
        other = self.script.event(RequestReceived).exchange
        self.script.endpoint.acknowledge(other, self.script.now)
        self.script.endpoint_sends("ACK [2]")
        self.notifies(exchange)
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=3 "one"')
        self.responds(other, content("other"))
        self.script.endpoint_is_quiet()
        self.script.until_timer()
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=3 "one"')
        self.script.endpoint_sends('CON [$b] 2.05 Token=02 "other"')
        self.script.peer_sends("ACK [$b]")
        self.script.peer_sends("ACK [$a]")
        self.script.event(NotificationDelivered)
        self.last(exchange)

    def test_slow_work_does_not_slow_the_rest(self) -> None:
        """An ACK that was held back for 100 s is not taken for a round trip, nor for loss more than once."""
        exchange = self.observes()
        rto = self.script.endpoint._core.peers["peer"].settings.rto
        before = rto.timeout
        self.notifies(exchange)
        self.script.endpoint_sends('CON [$a] 2.05 Token=4a Observe=3 "one"')
        self.waits(100)
        self.script.peer_sends("ACK [$a]")
        self.script.event(NotificationDelivered)
        self.assertLessEqual(rto.timeout, 2 * 1.5 * before)
        self.assertGreater(rto.timeout, before)
        self.last(exchange)

    def test_other_messages_count_as_ever(self) -> None:
        """Each doubling of the timeout of a response that is not acknowledged is left behind."""
        exchange = self.observes()
        self.script.peer_sends("CON [2] GET /other Token=02")
        other = self.script.event(RequestReceived).exchange
        self.script.endpoint.acknowledge(other, self.script.now)
        self.responds(other, content("other"))
        self.script.datagrams()
        rto = self.script.endpoint._core.peers["peer"].settings.rto
        before = rto.timeout
        self.waits(30)
        self.assertGreaterEqual(rto.timeout, 8 * before)
        self.waits(100)
        self.script.event(ResponseUndelivered)
        self.last(exchange)

    def test_a_slow_way_is_learnt(self) -> None:
        """A round trip of 3.5 s, more than the first timeouts: soon there are no copies."""
        exchange = self.observes()
        copies = []
        for _ in range(8):
            self.notifies(exchange)
            (message,) = self.script.datagrams()
            copies.append(self.waits(3.5))
            self.script.peer_sends(f"ACK [{message.message_id}]")
            self.script.event(NotificationDelivered)
        self.assertEqual(copies[0], 1)
        self.assertEqual(copies[5:], [0, 0, 0])
        smoothed = self.script.endpoint._core.peers["peer"].settings.rto.smoothed_rtt
        self.assertGreater(smoothed or 0, 1.0)
        self.last(exchange)
