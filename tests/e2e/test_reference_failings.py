# SPDX-License-Identifier: AGPL-3.0-or-later
"""Where the reference proxy falls short, each shown not to be ours (what is not here is in test_deployed_clients)."""

from __future__ import annotations

import re

from twisted.internet.defer import CancelledError, Deferred, gatherResults

from synapse_lb.client.errors import ConnectionLost, RequestTimeout
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import encode_uint
from synapse_lb.coap.tuning import Tuning
from synapse_lb.msc3079.messages import NO_BODY
from synapse_lb.testing.throwaway import ThrowawayHomeserver
from synapse_lb.txdtls.options import ClientOptions
from tests.e2e.harness import CLIENT, RawPeer, SynapseTestCase, cbor_value, path_options

ACCESS_TOKEN = 256


class StatusTests(SynapseTestCase):
    """429, 409, 404, ... came out as code 0.00."""

    kind = "rate-limited"

    async def ask_raw(self, code: int, path: str, body: bytes = b"", token: str | None = None) -> Message:
        peer = await self.raw()
        options = path_options(path)
        if body:
            options = options.with_option(OptionNumber.CONTENT_FORMAT, encode_uint(50))
        options = options.with_option(OptionNumber.ACCEPT, encode_uint(60))
        if token is not None:
            options = options.with_option(ACCESS_TOKEN, token.encode())
        peer.request(code, options, body)
        response = await peer.response()
        self.assertEqual(response.options.get_uint(OptionNumber.CONTENT_FORMAT), 60)
        return response

    async def test_429_with_max_age(self) -> None:
        user = self.user()
        room = user.room()
        answers = []
        for number in range(4):
            path = f"{CLIENT}/rooms/{room}/send/m.room.message/{number}"
            body = b'{"msgtype": "m.text", "body": "x"}'
            answers.append(await self.ask_raw(Code.PUT, path, body, user.token))
        limited = [answer for answer in answers if answer.code == Code.TOO_MANY_REQUESTS]
        self.assertTrue(limited, [answer.code for answer in answers])
        body_of = cbor_value(limited[0])
        self.assertEqual(body_of["errcode"], "M_LIMIT_EXCEEDED")
        max_age = limited[0].options.get_uint(OptionNumber.MAX_AGE)
        assert max_age is not None
        self.assertEqual(max_age, -(-body_of["retry_after_ms"] // 1000))
        self.assertGreater(max_age, 0)

    async def test_the_client_is_told_when_to_try_again(self) -> None:
        user = self.user()
        room = user.room()
        client = self.client()
        for number in range(4):
            path = f"{CLIENT}/rooms/{room}/send/m.room.message/{number}"
            body = {"msgtype": "m.text", "body": "x"}
            response = await client.request("PUT", path, json=body, token=user.token)
        self.assertEqual(response.status, 429)
        assert response.retry_after is not None
        self.assertGreater(response.retry_after, 0)

    async def test_409_404_403_401_400_405(self) -> None:
        user, other = self.user(), self.user()
        room = user.room(room_alias_name=f"taken-{user.name}")
        alias = f"{CLIENT}/directory/room/#taken-{user.name}:localhost"
        room_body = b'{"room_id": "%s"}' % room.encode()
        missing = f"{CLIENT}/rooms/{room}/event/$none"
        for code, path, body, token, expected, errcode in (
            (Code.PUT, alias, room_body, user.token, Code.CONFLICT, "M_UNKNOWN"),
            (Code.GET, missing, b"", user.token, Code.NOT_FOUND, "M_NOT_FOUND"),
            (Code.GET, f"{CLIENT}/no/such/thing", b"", None, Code.NOT_FOUND, "M_UNRECOGNIZED"),
            (Code.GET, f"{CLIENT}/rooms/{room}/state", b"", other.token, Code.FORBIDDEN, "M_FORBIDDEN"),
            (Code.GET, f"{CLIENT}/sync", b"", None, Code.UNAUTHORIZED, "M_MISSING_TOKEN"),
            (Code.GET, f"{CLIENT}/sync", b"", "wrong", Code.UNAUTHORIZED, "M_UNKNOWN_TOKEN"),
            (Code.POST, f"{CLIENT}/createRoom", b'{"preset": 1}', user.token, Code.BAD_REQUEST, None),
            (Code.DELETE, f"{CLIENT}/sync", b"", user.token, Code.METHOD_NOT_ALLOWED, "M_UNRECOGNIZED"),
        ):
            response = await self.ask_raw(code, path, body, token)
            self.assertEqual(response.code, expected, (path, response.payload))
            answer = cbor_value(response)
            self.assertIn("error", answer)
            if errcode is not None:
                self.assertEqual(answer["errcode"], errcode)


class RobustnessTests(SynapseTestCase):
    async def test_statuses_and_bodies_are_those_of_http(self) -> None:
        user = self.user()
        client = self.client()
        room = user.room()
        for method, path, body in (
            ("GET", f"{CLIENT}/rooms/{room}/event/$none", None),
            ("GET", f"{CLIENT}/no/such/thing", None),
            ("PATCH", f"{CLIENT}/sync", None),
            ("POST", f"{CLIENT}/createRoom", {"preset": 1}),
            ("POST", f"{CLIENT}/createRoom", ["no object"]),
            ("GET", f"{CLIENT}/sync?filter=nonsense", None),
            ("GET", f"{CLIENT}/profile/nonsense", None),
        ):
            over_http = self.homeserver.request(method, path, body, user.token)
            plain, _, query = path.partition("?")
            pairs = [(name, value) for name, _, value in (query.partition("="),) if name]
            json = NO_BODY if body is None else body
            response = await client.request(method, plain, pairs, json, user.token)
            self.assertEqual((response.status, response.body), over_http, path)

    async def test_the_two_bytes_that_killed_it(self) -> None:
        peer = await self.raw()
        options = path_options(f"{CLIENT}/login").with_option(OptionNumber.CONTENT_FORMAT, encode_uint(60))
        peer.request(Code.POST, options, b"\x41\x00")
        response = await peer.response()
        self.assertEqual((response.code, cbor_value(response)["errcode"]), (Code.BAD_REQUEST, "M_BAD_JSON"))
        peer.request(Code.GET, path_options("/_matrix/client/versions"), token=b"\x02")
        self.assertEqual((await peer.response(b"\x02")).code, Code.CONTENT)

    async def test_half_open_handshakes_stall_nobody(self) -> None:
        # 40 clients whose server never hears more than their hellos, the second of which has a cookie.
        asking = ClientOptions(hello_size=0, false_start=False)
        waiting = []
        for _ in range(40):
            relay = self.relay()
            relay.to_server.drop = lambda number, data: number >= 2
            opening = Deferred.fromCoroutine(RawPeer().open("127.0.0.1", relay.port, options=asking))
            opening.addErrback(lambda failure: failure.trap(CancelledError) and None)
            waiting.append((opening, relay))
        await self.until(
            lambda: all(relay.to_server.counters.sent >= 2 for _, relay in waiting), "half of a handshake"
        )
        await self.assert_alive()
        self.assertFalse(any(opening.called for opening, _ in waiting))
        for opening, _ in waiting:
            opening.cancel()
        await gatherResults([opening for opening, _ in waiting])

    async def test_the_client_is_known_by_its_own_address(self) -> None:
        user = self.user()
        relay = self.relay(interface="127.0.0.77")
        client_port = relay.port
        peer = RawPeer()
        self.addCleanup(peer.close)
        await peer.open("127.0.0.77", client_port)
        options = path_options(f"{CLIENT}/account/whoami").with_option(ACCESS_TOKEN, user.token.encode())
        peer.request(Code.GET, options)
        await peer.response()
        await self.until(lambda: self.logged_requests("whoami"), "an access-log line")
        self.assertRegex(self.logged_requests("whoami")[0], r" - 127\.0\.0\.77 - ")

    async def test_two_long_polls_and_other_requests_do_not_wait_for_each_other(self) -> None:
        user = self.user()
        client = self.client()
        since = user.http("GET", f"{CLIENT}/sync?timeout=0")["next_batch"]
        polls = []
        for limit in (10, 11):
            chosen = f'{{"room":{{"timeline":{{"limit":{limit}}}}},"presence":{{"types":[]}}}}'
            query = {"since": since, "timeout": "30000", "filter": chosen}
            polls.append(client.request("GET", f"{CLIENT}/sync", query, token=user.token))
        for _ in range(5):
            await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        self.assertFalse(any(poll.called for poll in polls))
        room = user.room(name="wakes both")
        for poll in polls:
            answer = await poll
            self.assertIn(room, answer.body["rooms"]["join"])

    async def test_a_client_that_goes_away_ends_its_request(self) -> None:
        user = self.user()
        since = user.http("GET", f"{CLIENT}/sync?timeout=0")["next_batch"]
        query = {"since": since, "timeout": "2000"}
        client = self.client()
        poll = client.request("GET", f"{CLIENT}/sync", query, token=user.token)
        # Answered in order of arrival: now the long poll is in Synapse.
        await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        self.assertEqual(self.logged_requests(r"GET \S+/sync\S* CoAP"), [])
        await client.close()
        await self.assertFailure(poll, ConnectionLost)
        await self.until_abandoned()

    async def test_a_cancelled_request_ends_in_synapse(self) -> None:
        # The client keeps its association; it rejects the response that comes later (RFC 7252 section 4.2),
        # or a new request with the token of the old one ends that.
        user = self.user()
        since = user.http("GET", f"{CLIENT}/sync?timeout=0")["next_batch"]
        peer = await self.raw()
        options = path_options(f"{CLIENT}/sync", f"since={since}&timeout=2000")
        peer.request(Code.GET, options.with_option(ACCESS_TOKEN, user.token.encode()), token=b"\x05")
        await peer.find(lambda m: m.type is Type.ACK and m.code == Code.EMPTY, "empty ACK")
        # Begun in order of arrival: now the long poll is in Synapse, not only acknowledged.
        peer.request(Code.GET, path_options(f"{CLIENT}/account/whoami"), token=b"\x06")
        await peer.response(b"\x06")
        peer.request(Code.GET, path_options(f"{CLIENT}/account/whoami"), token=b"\x05")
        response = await peer.response(b"\x05")
        self.assertEqual(cbor_value(response)["user_id"], user.user_id)
        await self.until_abandoned()

    async def until_abandoned(self) -> None:
        """Wait until Synapse has noticed, and until it has ended the /sync in its own time, without an answer.

        Synapse shares the work of equal syncs, so that cancelling one does not end the wait; HTTP is no different.
        """
        lost = "Connection from client lost before response was sent"
        await self.until(lambda: lost in self.logged(), "Synapse notices")
        # The exclamation mark says that the response was not sent.
        pattern = r'B \d+! "GET \S+/sync\S* CoAP'
        await self.until(lambda: self.logged_requests(pattern), "the end of the long poll in Synapse's log")

    async def test_a_closed_association_can_be_made_anew(self) -> None:
        user = self.user()
        client = self.client()
        await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        await client.close()
        again = self.client()
        # The token was sticky on the old association only, so it must be sent again: the client does.
        body = await self.ask(again, "GET", f"{CLIENT}/account/whoami", token=user.token)
        self.assertEqual(body["user_id"], user.user_id)

    async def test_message_ids_of_responses_differ(self) -> None:
        user = self.user()
        peer = await self.raw()
        seen = set()
        for number in range(3):
            since = user.http("GET", f"{CLIENT}/sync?timeout=0")["next_batch"]
            token = bytes([number + 1])
            options = path_options(f"{CLIENT}/sync", f"since={since}&timeout=30000")
            peer.request(Code.GET, options.with_option(ACCESS_TOKEN, user.token.encode()), token=token)
            await peer.find(lambda m: m.type is Type.ACK and m.code == Code.EMPTY, "empty ACK")
            user.room(name=str(number))
            response = await peer.response(token)
            self.assertIs(response.type, Type.CON)
            self.assertTrue(response.payload)
            seen.add(response.message_id)
        self.assertEqual(len(seen), 3)

    async def test_no_token_appears_in_the_log(self) -> None:
        user = self.user()
        peer = await self.raw()
        options = path_options(f"{CLIENT}/account/whoami").with_option(ACCESS_TOKEN, user.token.encode())
        peer.request(Code.GET, options)
        await peer.response()
        peer.request(Code.GET, path_options("/x").with_option(ACCESS_TOKEN, b"bad\ntoken"), token=b"\x02")
        self.assertEqual((await peer.response(b"\x02")).code, Code.BAD_REQUEST)
        await self.until(lambda: self.logged_requests("whoami"), "an access-log line")
        self.assertNotIn(user.token, self.logged())
        self.assertIsNone(re.search(r"bad.token", self.logged()))


class RestartTests(SynapseTestCase):
    """After a restart of the reference no client came back."""

    def setUp(self) -> None:
        self.homeserver = ThrowawayHomeserver()
        try:
            self.homeserver.start()
        except BaseException:
            self.homeserver.stop()
            raise
        self.log_start = self.errors_before = 0

    def tearDown(self) -> None:
        try:
            super().tearDown()
        finally:
            self.homeserver.stop()

    async def test_clients_come_back_after_a_restart(self) -> None:
        user = self.user()
        client = self.client()
        peer = await self.raw()
        await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        self.assertEqual(self.homeserver.halt(), 0)
        # It has said goodbye.
        await peer.until_lost()
        self.assertEqual(type(peer.lost).__name__, "PeerClosed")
        self.homeserver.start()
        body = await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        self.assertEqual(body["user_id"], user.user_id)

    async def test_clients_come_back_after_a_crash(self) -> None:
        user = self.user()
        brisk = Tuning(ack_timeout=0.1, min_rto=0.1, max_retransmit=2, separate_after=0.1)
        client = self.client(tuning=brisk)
        await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        self.homeserver.kill()
        self.homeserver.start()
        # Nobody has told the client. Its first request finds out, the next one makes a new association.
        failed = client.request("GET", f"{CLIENT}/account/whoami", token=user.token)
        await self.assertFailure(failed, RequestTimeout)
        body = await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        self.assertEqual(body["user_id"], user.user_id)

    async def test_requests_under_way_at_the_end_do_not_delay_it(self) -> None:
        user = self.user()
        client = self.client()
        since = user.http("GET", f"{CLIENT}/sync?timeout=0")["next_batch"]
        query = {"since": since, "timeout": "100000"}
        poll = client.request("GET", f"{CLIENT}/sync", query, token=user.token)
        await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        self.assertEqual(self.homeserver.halt(), 0)
        await self.assertFailure(poll, ConnectionLost)
        self.homeserver.start()
