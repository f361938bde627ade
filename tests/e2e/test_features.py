# SPDX-License-Identifier: AGPL-3.0-or-later
"""What works as over HTTP, and what cannot be carried and says so."""

from __future__ import annotations

from synapse_lb.coap.numbers import Code, OptionNumber
from tests.e2e.harness import CLIENT, SynapseTestCase, cbor_value, path_options


class NotCarriedTests(SynapseTestCase):
    """Redirects, web pages and media get a Matrix error, not silence."""

    kind = "special"

    async def refused(self, path: str, query: dict[str, str] | None = None, token: str | None = None) -> str:
        response = await self.client().request("GET", path, query, token=token, timeout=30)
        self.assertGreaterEqual(response.status, 400)
        self.assertRegex(response.body["errcode"], "^M_[A-Z_]+$")
        return str(response.body["error"])

    async def test_a_redirect(self) -> None:
        path = f"{CLIENT}/login/sso/redirect"
        query = {"redirectUrl": "https://client.example.com/"}
        status, _ = self.homeserver.request("GET", f"{path}?redirectUrl=https://client.example.com/")
        self.assertEqual(status, 302)
        self.assertIn("redirect", await self.refused(path, query))

    async def test_a_web_page(self) -> None:
        path = f"{CLIENT}/auth/m.login.recaptcha/fallback/web"
        status, body = self.homeserver.request("GET", f"{path}?session=x")
        self.assertEqual(status, 200)
        self.assertIn("<html", body)
        self.assertIn("web page", await self.refused(path, {"session": "x"}))

    async def test_media(self) -> None:
        user = self.user()
        for what in ("download", "thumbnail"):
            path = f"/_matrix/client/v1/media/{what}/localhost/abcdefgh"
            self.assertIn("media", await self.refused(path, token=user.token))


class SameMachineryTests(SynapseTestCase):
    kind = "special"

    async def test_a_user_interactive_401_carries_its_body(self) -> None:
        user = self.user()
        peer = await self.raw()
        options = path_options(f"{CLIENT}/delete_devices").with_option(256, user.token.encode())
        options = options.with_option(OptionNumber.CONTENT_FORMAT, b"\x3c")
        peer.request(Code.POST, options, b"\xa1\x67devices\x80")
        response = await peer.response()
        self.assertEqual(response.code, Code.UNAUTHORIZED)
        body = cbor_value(response)
        self.assertIn({"stages": ["m.login.password"]}, body["flows"])
        self.assertTrue(body["session"])
        # The next stage, with its session, is accepted.
        auth = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user.name},
            "password": "correct horse battery",
            "session": body["session"],
        }
        answer = await self.ask(
            self.client(), "POST", f"{CLIENT}/delete_devices", {"devices": [], "auth": auth}, token=user.token
        )
        self.assertEqual(answer, {})

    async def test_registration_says_what_it_wants(self) -> None:
        response = await self.client().request("POST", f"{CLIENT}/register", json={"username": "ui"})
        self.assertEqual(response.status, 401)
        self.assertEqual(response.body["flows"], [{"stages": ["m.login.dummy"]}])

    async def test_well_known(self) -> None:
        over_http = self.homeserver.request("GET", "/.well-known/matrix/client")
        response = await self.client().request("GET", "/.well-known/matrix/client")
        self.assertEqual((response.status, response.body), over_http)

    async def test_all_methods(self) -> None:
        user = self.user()
        client = self.client()
        room = user.room()
        tag = f"{CLIENT}/user/{user.user_id}/rooms/{room}/tags"
        await self.ask(client, "PUT", f"{tag}/u.work", {"order": 1}, token=user.token)
        tags = await self.ask(client, "GET", tag, token=user.token)
        self.assertEqual(tags, {"tags": {"u.work": {"order": 1}}})
        await self.ask(client, "DELETE", f"{tag}/u.work", token=user.token)
        self.assertEqual(user.http("GET", tag), {"tags": {}})
        await self.ask(client, "POST", f"{CLIENT}/rooms/{room}/leave", {}, token=user.token)
        self.assertEqual(user.http("GET", f"{CLIENT}/joined_rooms"), {"joined_rooms": []})

    async def test_a_token_in_the_option_with_and_without_bearer(self) -> None:
        user = self.user()
        for token in (user.token, f"Bearer {user.token}", f"bearer {user.token}"):
            peer = await self.raw()
            options = path_options(f"{CLIENT}/account/whoami").with_option(256, token.encode())
            peer.request(Code.GET, options)
            self.assertEqual(cbor_value(await peer.response())["user_id"], user.user_id)

    async def test_the_token_is_sticky_on_its_association_and_replaced_by_a_new_one(self) -> None:
        one, two = self.user(), self.user()
        peer, stranger = await self.raw(), await self.raw()
        whoami = path_options(f"{CLIENT}/account/whoami")
        seen = []
        for number, token in enumerate([one.token, None, two.token, None]):
            coap_token = bytes([number])
            options = whoami if token is None else whoami.with_option(256, token.encode())
            peer.request(Code.GET, options, token=coap_token)
            seen.append(cbor_value(await peer.response(coap_token))["user_id"])
        self.assertEqual(seen, [one.user_id, one.user_id, two.user_id, two.user_id])
        stranger.request(Code.GET, whoami)
        self.assertEqual((await stranger.response()).code, Code.UNAUTHORIZED)

    async def test_requests_count_in_synapse_metrics(self) -> None:
        def served() -> float:
            _, text = self.homeserver.request("GET", "/_synapse/metrics")
            lines = [
                line
                for line in text.splitlines()
                if line.startswith("synapse_http_server_response_count_total")
                and 'servlet="WhoamiRestServlet"' in line
                and 'method="GET"' in line
            ]
            return sum(float(line.rsplit(" ", 1)[1]) for line in lines)

        user = self.user()
        before = served()
        client = self.client()
        for _ in range(5):
            await self.ask(client, "GET", f"{CLIENT}/account/whoami", token=user.token)
        await self.until(lambda: served() == before + 5, "five requests in the metrics")
