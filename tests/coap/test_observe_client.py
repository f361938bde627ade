# SPDX-License-Identifier: AGPL-3.0-or-later
"""The client role of RFC 7641: registration, order, and explicit acknowledgement."""

from __future__ import annotations

from attrs import evolve

from synapse_lb.coap.errors import (
    NotObserved,
    RequestReset,
    RequestTimedOut,
    UnexpectedResponse,
)
from synapse_lb.coap.events import (
    CoapRequest,
    ResponseReceived,
)
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.coap.tuning import Limits
from tests.coap.observing import OBSERVE, ObserverCase


class Registration(ObserverCase):
    """Section 3.1."""

    def test_no_timeout_while_it_waits(self) -> None:
        """It may take a week until there is something to notify of."""
        exchange = self.observes()
        self.script.passes(7 * 86400)
        self.script.no_event()
        self.assertIsNone(self.script.endpoint.next_timer())
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.notified("one", 2)
        self.cancels(exchange)
        self.script.endpoint_sends("RST [1]")

    def test_never_acknowledged(self) -> None:
        exchange = self.requests()
        self.script.passes(200)
        self.script.datagrams()
        self.failed(exchange, RequestTimedOut)

    def test_non_confirmable(self) -> None:
        """Nobody says that it has come through, so it does time out; not once it has."""
        exchange = self.requests(evolve(OBSERVE, confirmable=False))
        self.script.endpoint_sends("NON [$m] GET /r Observe=0 Token=$t")
        self.script.passes(300)
        self.failed(exchange, RequestTimedOut)
        exchange = self.requests(evolve(OBSERVE, confirmable=False))
        self.script.endpoint_sends("NON [$m2] GET /r Observe=0 Token=$t2")
        self.script.peer_sends('NON [1] 2.05 Token=$t2 Observe=2 "one"')
        self.notified("one", 2)
        self.script.passes(1000)
        self.script.no_event()
        self.cancels(exchange)

    def test_rejected(self) -> None:
        exchange = self.requests()
        self.script.endpoint_sends("CON [$m] GET /r Observe=0 Token=$t")
        self.script.peer_sends("RST [$m]")
        self.failed(exchange, RequestReset)

    def test_the_notification_overtakes_the_ack(self) -> None:
        """It shows that the registration has come through; the late ACK means nothing."""
        exchange = self.requests()
        self.script.endpoint_sends("CON [$m] GET /r Observe=0 Token=$t")
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.notified("one", 2)
        self.script.passes(200)
        self.script.endpoint_is_quiet()
        self.script.peer_sends("ACK [$m]")
        self.confirms(exchange)
        self.script.endpoint_sends("ACK [1]")
        self.cancels(exchange)

    def test_declined(self) -> None:
        """Section 3.2: a response without Observe ends it, whatever its code."""
        for line, code in (('2.05 Token=$t "x"', Code.CONTENT), ("4.05 Token=$t", Code.METHOD_NOT_ALLOWED)):
            self.begin()
            exchange = self.observes()
            self.script.peer_sends(f"CON [1] {line}")
            self.script.endpoint_sends("ACK [1]")
            event = self.script.event(ResponseReceived)
            self.assertEqual((event.exchange, event.response.code), (exchange, code))

    def test_an_error_with_observe(self) -> None:
        """Section 3.2: only a response of class 2 is a notification that others follow."""
        self.observes()
        self.script.peer_sends("CON [1] 4.04 Token=$t Observe=7")
        self.script.endpoint_sends("ACK [1]")
        self.assertEqual(self.script.event(ResponseReceived).response.code, Code.NOT_FOUND)

    def test_observe_in_answer_to_a_plain_request(self) -> None:
        """It means nothing there."""
        self.requests(CoapRequest(Code.GET, Options.of((OptionNumber.URI_PATH, b"r"))))
        self.script.endpoint_sends("CON [$m] GET /r Token=$t")
        self.script.peer_sends('ACK [$m] 2.05 Token=$t Observe=7 "x"')
        self.script.event(ResponseReceived)

    def test_fetch_in_blocks(self) -> None:
        """Each block of the registration has Observe and a token of its own; notifications have the last."""
        self.begin(limits=Limits(block_szx=0))
        exchange = self.requests(evolve(OBSERVE, code=Code.FETCH, payload=b"a" * 16 + b"b"))
        self.script.endpoint_sends("CON [$m] FETCH /r Observe=0 1:0/1/16 Size1=17 Token=$t1", b"a" * 16)
        self.script.peer_sends("ACK [$m] 2.31 1:0/1/16 Token=$t1")
        self.script.endpoint_sends("CON [$n] FETCH /r Observe=0 1:1/0/16 2:0/0/16 Token=$t", b"b")
        self.script.peer_sends("ACK [$n]")
        self.script.passes(1000)
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 1:1/0/16 "one"')
        self.assertNotIn(OptionNumber.BLOCK1, self.notified("one", 2).response.options)
        self.confirms(exchange)
        self.script.endpoint_sends("ACK [1]")
        self.cancels(exchange)

    def test_observe_before_the_whole_registration(self) -> None:
        """It makes no sense, neither in answer to a block nor with a request for more."""
        for payload, code in ((b"a" * 17, "2.05"), (b"a", "2.31")):
            self.begin(limits=Limits(block_szx=0))
            exchange = self.requests(evolve(OBSERVE, code=Code.FETCH, payload=payload))
            (message,) = self.script.datagrams()
            token = message.token.hex()
            self.script.peer_sends(f"ACK [{message.message_id}] {code} Token={token} Observe=2")
            self.failed(exchange, UnexpectedResponse)

    def test_fetch_in_blocks_of_which_one_is_not_answered(self) -> None:
        """The time without limit is that of the whole registration only."""
        self.begin(limits=Limits(block_szx=0))
        exchange = self.requests(evolve(OBSERVE, code=Code.FETCH, payload=b"a" * 17))
        self.script.endpoint_sends("CON [$m] FETCH /r Observe=0 1:0/1/16 Size1=17 Token=$t1", b"a" * 16)
        self.script.peer_sends("ACK [$m]")
        self.script.passes(300)
        self.failed(exchange, RequestTimedOut)


class Confirmation(ObserverCase):
    """The ACK means that the notification was processed."""

    def test_it_leaves_when_it_is_confirmed(self) -> None:
        """Copies before that are absorbed, copies after it are answered with the same."""
        exchange = self.observes()
        line = 'CON [1] 2.05 Token=$t Observe=2 "one"'
        self.script.peer_sends(line)
        self.notified("one", 2)
        for _ in range(3):
            self.script.passes(30)
            self.script.peer_sends(line)
            self.script.no_event()
            self.script.endpoint_is_quiet()
        self.confirms(exchange)
        self.script.endpoint_sends("ACK [1]")
        self.script.peer_sends(line)
        self.script.endpoint_sends("ACK [1]")
        self.script.no_event()
        self.assertEqual(self.script.endpoint.counters.duplicates, 4)
        self.assertEqual(self.script.endpoint.counters.notifications_received, 1)
        self.cancels(exchange)

    def test_however_long_it_takes(self) -> None:
        """A copy after EXCHANGE_LIFETIME is still one while it is not confirmed."""
        exchange = self.observes()
        line = 'CON [1] 2.05 Token=$t Observe=2 "one"'
        self.script.peer_sends(line)
        self.notified("one", 2)
        self.script.passes(1000)
        self.script.peer_sends(line)
        self.script.no_event()
        self.confirms(exchange)
        self.script.endpoint_sends("ACK [1]")
        self.cancels(exchange)

    def test_several(self) -> None:
        """One that is not confirmed blocks nothing else; they are confirmed in their order."""
        exchange = self.observes()
        for number in (1, 2, 3):
            self.script.peer_sends(f'CON [{number}] 2.05 Token=$t Observe={number} "{number}"')
            self.notified(str(number), number)
        for number in (1, 2, 3):
            self.confirms(exchange)
            self.script.endpoint_sends(f"ACK [{number}]")
        self.confirms(exchange)
        self.script.endpoint_is_quiet()
        self.cancels(exchange)

    def test_those_that_need_no_ack(self) -> None:
        """They have their turn all the same."""
        exchange = self.requests()
        self.script.endpoint_sends("CON [$m] GET /r Observe=0 Token=$t")
        self.script.peer_sends('ACK [$m] 2.05 Token=$t Observe=1 "1"')
        self.script.peer_sends('NON [1] 2.05 Token=$t Observe=2 "2"')
        self.script.peer_sends('CON [2] 2.05 Token=$t Observe=3 "3"')
        for number in (1, 2, 3):
            self.notified(str(number), number)
        self.confirms(exchange)
        self.confirms(exchange)
        self.script.endpoint_is_quiet()
        self.confirms(exchange)
        self.script.endpoint_sends("ACK [2]")
        self.cancels(exchange)

    def test_of_nothing(self) -> None:
        """Nothing happens."""
        self.confirms(99)
        exchange = self.observes()
        self.confirms(exchange)
        self.script.endpoint_is_quiet()
        self.cancels(exchange)
        self.confirms(exchange)
        self.script.endpoint_is_quiet()

    def test_too_many_unconfirmed(self) -> None:
        """At the bound it is taken; over it, it is as if it had been lost, until there is room."""
        self.begin(limits=Limits(max_unconfirmed_notifications=2))
        exchange = self.observes()
        lines = [f'CON [{number}] 2.05 Token=$t Observe={number} "{number}"' for number in (1, 2, 3)]
        for line in lines:
            self.script.peer_sends(line)
        self.notified("1", 1)
        self.notified("2", 2)
        self.script.no_event()
        self.assertEqual(self.script.endpoint.counters.notifications_refused, 1)
        self.confirms(exchange)
        self.script.endpoint_sends("ACK [1]")
        self.script.peer_sends(lines[2])
        self.notified("3", 3)
        self.confirms(exchange)
        self.script.endpoint_sends("ACK [2]")
        self.confirms(exchange)
        self.script.endpoint_sends("ACK [3]")
        self.cancels(exchange)


class Order(ObserverCase):
    """Section 3.4."""

    def test_an_older_one_is_dropped(self) -> None:
        """A Confirmable one is acknowledged, so that it is not repeated."""
        exchange = self.observes()
        self.script.peer_sends('NON [1] 2.05 Token=$t Observe=10 "new"')
        self.notified("new", 10)
        self.script.peer_sends('NON [2] 2.05 Token=$t Observe=9 "old"')
        self.script.endpoint_is_quiet()
        self.script.peer_sends('CON [3] 2.05 Token=$t Observe=8 "older"')
        self.script.endpoint_sends("ACK [3]")
        self.script.no_event()
        self.assertEqual(self.script.endpoint.counters.notifications_stale, 2)
        self.cancels(exchange)

    def test_the_same_number_again(self) -> None:
        """A copy of a Non-confirmable one."""
        exchange = self.observes()
        for _ in range(2):
            self.script.peer_sends('NON [1] 2.05 Token=$t Observe=10 "new"')
        self.notified("new", 10)
        self.script.no_event()
        self.cancels(exchange)

    def test_wrap(self) -> None:
        exchange = self.observes()
        for message_id, number in enumerate((0xFFFFFE, 0xFFFFFF, 0, 1)):
            self.script.peer_sends(f'NON [{message_id}] 2.05 Token=$t Observe={number} "x"')
            self.notified("x", number)
        self.script.peer_sends('NON [9] 2.05 Token=$t Observe=16777215 "x"')
        self.script.no_event()
        self.cancels(exchange)

    def test_after_128_seconds(self) -> None:
        """Any number is newer; until then it is not."""
        exchange = self.observes()
        self.script.peer_sends('NON [1] 2.05 Token=$t Observe=10 "one"')
        self.notified("one", 10)
        self.script.passes(128)
        self.script.peer_sends('NON [2] 2.05 Token=$t Observe=5 "two"')
        self.script.no_event()
        self.script.passes(0.001)
        self.script.peer_sends('NON [3] 2.05 Token=$t Observe=5 "two"')
        self.notified("two", 5)
        self.cancels(exchange)

    def test_of_another_observation(self) -> None:
        """Each has its own order."""
        one, two = self.observes(), self.requests()
        (message,) = self.script.datagrams()
        self.script.peer_sends('NON [1] 2.05 Token=$t Observe=10 "one"')
        self.script.peer_sends(f'NON [2] 2.05 Token=0x{message.token.hex()} Observe=3 "two"')
        self.assertEqual(self.notified("one", 10).exchange, one)
        self.assertEqual(self.notified("two", 3).exchange, two)
        for exchange in (one, two):
            self.cancels(exchange)


class Replacing(ObserverCase):
    """Section 3.3.1: a registration takes the place and the token of another."""

    def test_it_is_repeated_until_it_is_answered(self) -> None:
        """A notification may be of the old one: it does not show that the new one has come through."""
        old = self.observes()
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.notified("one", 2)
        new = self.requests(replacing=old)
        self.assertNotEqual(old, new)
        self.script.endpoint_sends("CON [$n] GET /r Observe=0 Token=$t")
        self.script.peer_sends('CON [2] 2.05 Token=$t Observe=3 "two"')
        self.assertEqual(self.notified("two", 3).exchange, new)
        self.script.until_timer()
        self.script.endpoint_sends("CON [$n] GET /r Observe=0 Token=$t")
        self.script.peer_sends("ACK [$n]")
        self.script.passes(1000)
        self.script.peer_sends('CON [3] 2.05 Token=$t Observe=4 "three"')
        self.notified("three", 4)
        for number in (2, 3):
            self.confirms(new)
            self.script.endpoint_sends(f"ACK [{number}]")
        self.cancels(new)

    def test_the_answer_may_come_with_the_ack(self) -> None:
        """It is the newest, whatever its number: the server may have begun anew."""
        old = self.observes()
        self.script.peer_sends('NON [1] 2.05 Token=$t Observe=200 "one"')
        self.notified("one", 200)
        new = self.requests(replacing=old)
        self.script.endpoint_sends("CON [$n] GET /r Observe=0 Token=$t")
        self.script.peer_sends('NON [2] 2.05 Token=$t Observe=199 "late"')
        self.script.no_event()
        self.script.peer_sends('ACK [$n] 2.05 Token=$t Observe=2 "two"')
        self.assertEqual(self.notified("two", 2).exchange, new)
        self.script.peer_sends('NON [3] 2.05 Token=$t Observe=3 "three"')
        self.notified("three", 3)
        self.cancels(new)

    def test_what_was_not_confirmed_never_will_be(self) -> None:
        old = self.observes()
        self.script.peer_sends('CON [1] 2.05 Token=$t Observe=2 "one"')
        self.notified("one", 2)
        new = self.requests(replacing=old)
        self.script.endpoint_sends("CON [$n] GET /r Observe=0 Token=$t")
        self.confirms(old)
        self.confirms(new)
        self.script.endpoint_is_quiet()
        self.cancels(new)

    def test_what_cannot_be_replaced(self) -> None:
        """Nothing, a plain request, or what is with another peer."""
        plain = self.requests(CoapRequest(Code.GET))
        observation = self.observes_quietly()
        for replacing in (99, plain):
            self.assertRaises(NotObserved, self.requests, replacing=replacing)
        request = self.script.endpoint.request
        self.assertRaises(NotObserved, request, "other", OBSERVE, self.script.now, replacing=observation)
        for exchange in (plain, observation):
            self.cancels(exchange)

    def observes_quietly(self) -> int:
        exchange = self.requests()
        self.script.datagrams()
        return exchange
