# SPDX-License-Identifier: AGPL-3.0-or-later
"""`HomeserverTestCase`: Synapse in this process, asked over CoAP in virtual time."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

from synapse_lb.testing.synapse import (
    FakeChannel,
    HomeserverTestCase,
    NotOverCoap,
    Reason,
    TimedOutException,
    override_config,
)

V3 = "/_matrix/client/v3"
FILTER = f"{V3}/user/@alice:test/filter"


class ConversationTests(HomeserverTestCase):
    """What most tests need first."""

    def test_conversation(self) -> None:
        """Two users in a room; the one sees what the other sends."""
        alice, bob = self.register_and_login("alice"), self.register_and_login("bob")
        room = self.create_room(alice, preset="public_chat")
        self.join(room, bob)
        since = self.sync(bob)["next_batch"]
        event = self.send(room, "Hello", alice)
        timeline = self.sync(bob, since)["rooms"]["join"][room]["timeline"]["events"]
        self.assertEqual(
            [(each["event_id"], each["content"]["body"]) for each in timeline], [(event, "Hello")]
        )
        self.assertEqual(self.requester.tally.coap, 7)
        self.assertFalse(self.requester.tally.http)

    def test_a_long_poll_ends_when_there_is_something(self) -> None:
        """Nothing happens in a test that does not let time pass, and a long poll takes as long as it takes."""
        token = self.register_and_login("alice")
        room = self.create_room(token)
        since = self.sync(token)["next_batch"]
        poll = self.make_request(
            "GET", f"{V3}/sync?since={since}&timeout=30000", access_token=token, await_result=False
        )
        self.assertRaises(TimedOutException, poll.await_result, 500)
        event = self.send(room, "Hello", token)
        poll.await_result()
        timeline = poll.json_body["rooms"]["join"][room]["timeline"]["events"]
        self.assertEqual([each["event_id"] for each in timeline], [event])

    def test_blocks(self) -> None:
        """What one datagram cannot hold goes and comes in several."""
        token = self.register_and_login("alice")
        client = self.requester.client(self.reactor, self.site)
        before = client.counters
        names = [f"!{sha256(bytes([number])).hexdigest()}:test" for number in range(100)]
        made = self.make_request("POST", FILTER, {"room": {"rooms": names}}, token)
        self.assertEqual(made.code, 200, made.result)
        sent = client.counters.datagrams_sent - before.datagrams_sent
        self.assertGreater(sent, 3)
        received = client.counters.datagrams_received
        read = self.make_request("GET", f"{FILTER}/{made.json_body['filter_id']}", access_token=token)
        self.assertEqual(read.json_body, {"room": {"rooms": names}})
        self.assertGreater(client.counters.datagrams_received - received, 1)

    @override_config({"rc_login": {"address": {"per_second": 0.5, "burst_count": 1}}})
    def test_addresses_and_rate_limits(self) -> None:
        """Each address is a client of its own, and time heals a rate limit."""
        self.register_user("alice")

        def login(ip: str) -> FakeChannel:
            body = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "alice"}}
            return self.make_request("POST", f"{V3}/login", {**body, "password": "secret"}, client_ip=ip)

        self.assertEqual(login("192.0.2.1").code, 200)
        limited = login("192.0.2.1")
        self.assertEqual((limited.code, limited.json_body["errcode"]), (429, "M_LIMIT_EXCEEDED"))
        self.assertEqual(limited.headers.getRawHeaders("Retry-After"), ["2"])
        self.assertEqual(login("2001:db8::1").code, 200)
        self.reactor.advance(3)
        self.assertEqual(login("192.0.2.1").code, 200)

    def test_what_it_took(self) -> None:
        """Synapse's own account of a request, and the request itself, are there."""
        token = self.register_and_login("alice")
        channel = self.make_request("GET", f"{V3}/account/whoami", access_token=token)
        self.assertGreater(channel.resource_usage.db_txn_count, 0)
        self.assertEqual(str(channel.request.requester.user), "@alice:test")
        # The servlet's object itself was taken, before any JSON text was made of it.
        self.assertEqual(channel.request.answer, (200, channel.json_body))
        self.assertTrue(channel.is_finished())

    def test_nobody(self) -> None:
        """A request without a token has no user, whoever asked before on the same association."""
        self.register_and_login("alice")
        channel = self.make_request("GET", f"{V3}/account/whoami")
        self.assertEqual((channel.code, channel.json_body["errcode"]), (401, "M_MISSING_TOKEN"))


class WordsTests(HomeserverTestCase):
    """The client words its requests as it is told."""

    client_options = {"extensions": "known"}

    def test_x1(self) -> None:
        """The same in x1."""
        token = self.register_and_login("alice")
        room = self.create_room(token)
        since = self.sync(token)["next_batch"]
        event = self.send(room, "Hello", token)
        timeline = self.sync(token, since)["rooms"]["join"][room]["timeline"]["events"]
        self.assertEqual([each["event_id"] for each in timeline], [event])
        self.assertTrue(self.requester.client(self.reactor, self.site).speaks_x1)


class NotOverCoapTests(HomeserverTestCase):
    """What has no form in CoAP is told as such."""

    def refused(self, *args: Any, **named: Any) -> Reason:
        error = self.assertRaises(NotOverCoap, self.make_request, *args, **named)
        assert isinstance(error, NotOverCoap)
        self.assertEqual(self.requester.tally.refused[error.reason], 1)
        return error.reason

    def test_reasons(self) -> None:
        """Each kind of thing has its reason, and nothing goes over HTTP."""
        self.assertIs(self.refused("GET", "/_synapse/admin/v1/server_version"), Reason.API)
        self.assertIs(self.refused("OPTIONS", f"{V3}/login"), Reason.METHOD)
        self.assertIs(self.refused("POST", f"{V3}/login", b"a=b", content_is_form=True), Reason.BODY)
        self.assertIs(self.refused("GET", f"{V3}/login", custom_headers=[("Cookie", "a=b")]), Reason.HEADER)
        self.assertIs(self.refused("GET", f"{V3}/login", federation_auth_origin=b"x"), Reason.LOGIN)
        self.assertIs(self.refused("GET", f"{V3}/directory/room/{'x' * 300}"), Reason.OPTION)
        self.assertIs(self.refused("GET", f"{V3}/auth/m.login.terms/fallback/web?session=x"), Reason.ANSWER)
        self.assertFalse(self.requester.tally.http)

    def test_what_claims_to_be_json(self) -> None:
        """A body that claims to be JSON travels as it is, and the listener refuses it as Synapse does."""
        for body in (b"{not JSON", b'{"a":NaN}', b"\xff"):
            channel = self.make_request("POST", f"{V3}/login", body)
            self.assertEqual((channel.code, channel.json_body["errcode"]), (400, "M_NOT_JSON"), body)

    def test_headers_of_answers(self) -> None:
        """A header that CoAP does not carry is not silently absent."""
        channel = self.make_request("GET", "/_matrix/client/versions")
        self.assertEqual(channel.headers.getRawHeaders("Content-Type"), ["application/json"])
        self.assertIsNone(channel.headers.getRawHeaders("Retry-After"))
        self.assertRaises(NotOverCoap, channel.headers.getRawHeaders, "Access-Control-Allow-Origin")

    def test_bearer(self) -> None:
        """A token in a header is a token."""
        token = self.register_and_login("alice")
        headers = [("Authorization", f"Bearer {token}")]
        channel = self.make_request("GET", f"{V3}/account/whoami", custom_headers=headers)
        self.assertEqual(channel.json_body["user_id"], "@alice:test")


class OverHttpTests(HomeserverTestCase):
    """What a test has asked for goes over HTTP."""

    over_http = (Reason.API, Reason.HEADER)

    def test_counted(self) -> None:
        """The rest goes over CoAP, or fails."""
        self.register_user("root", admin=True)
        token = self.login("root")
        path = "/_synapse/admin/v1/users/@root:test/admin"
        channel = self.make_request("GET", path, access_token=token)
        self.assertEqual((channel.code, channel.json_body), (200, {"admin": True}))
        self.assertEqual(channel.headers.getRawHeaders("Access-Control-Allow-Origin"), ["*"])
        self.assertGreater(channel.resource_usage.db_txn_count, 0)
        self.make_request("GET", "/_matrix/client/versions", custom_headers=[("Origin", "https://x.org")])
        self.assertRaises(NotOverCoap, self.make_request, "OPTIONS", f"{V3}/login")
        self.assertEqual(self.requester.tally.http, {Reason.API: 1, Reason.HEADER: 1})
        self.assertEqual(self.requester.tally.coap, 1)
