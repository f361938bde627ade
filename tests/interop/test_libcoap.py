# SPDX-License-Identifier: AGPL-3.0-or-later
"""Matrix with other people's CoAP: libcoap's client over OpenSSL and over GnuTLS (Debian libcoap3-bin).

Both are run as they are, against a real Synapse. The client cuts a path from a URI at 100 bytes, so what is sent into
a room goes by path code. Exit status 0 says nothing: an error response is printed and leaves no output file.
"""

from __future__ import annotations

import os
import shutil
from typing import Any
from urllib.parse import quote

from twisted.internet import reactor as _reactor
from twisted.internet.utils import getProcessOutputAndValue
from twisted.trial.unittest import SkipTest

from synapse_lb.msc3079 import cbor
from synapse_lb.txdtls.certificates import generate_self_signed
from tests.e2e.harness import CLIENT, SynapseTestCase, User

reactor: Any = _reactor

PASSWORD = "correct horse battery"
LONG = "a line of a long message, " * 300
"""Some 8 KB: eight blocks of 1024 bytes."""


class LibcoapTests(SynapseTestCase):
    """The conversation, with the build over OpenSSL."""

    program = "coap-client-openssl"

    def setUp(self) -> None:
        if shutil.which(self.program) is None:
            raise SkipTest(f"{self.program} is not installed (Debian: libcoap3-bin)")
        super().setUp()
        self.alice: User = self.user()

    async def run_client(
        self, path: str, *arguments: str, body: Any = None, trusting: str | None = None
    ) -> tuple[bytes, str]:
        """Run the client once.

        Args:
            path: Path and query.
            arguments: What comes before the URI.
            body: Is sent as CBOR.
            trusting: Certificate that the server's must match; None to check nothing.

        Returns:
            The body of a successful response, and what was printed.
        """
        folder = self.mktemp()
        os.mkdir(folder)
        output = os.path.join(folder, "out")
        command = ["-B", "20", "-o", output, *(("-n",) if trusting is None else ("-C", trusting)), *arguments]
        if body is not None:
            given = os.path.join(folder, "in")
            with open(given, "wb") as file:
                file.write(cbor.encode(body, 1))
            command += ["-t", "60", "-f", given]
        url = f"coaps://127.0.0.1:{self.homeserver.ports.lowbandwidth}{path}"
        out, err, _ = await getProcessOutputAndValue(shutil.which(self.program), [*command, url], os.environ)
        printed = (out + err).decode(errors="replace")
        if not os.path.exists(output):
            return b"", printed
        with open(output, "rb") as file:
            return file.read(), printed

    async def ask_client(self, path: str, *arguments: str, body: Any = None) -> Any:
        """Run the client; the value of the CBOR body that it got."""
        answer, printed = await self.run_client(path, *arguments, body=body)
        self.assertNotEqual(answer, b"", printed)
        return cbor.decode(answer).value

    def authorized(self) -> tuple[str, str]:
        """The option that carries Alice's token."""
        return "-O", f"256,{self.alice.token}"

    def sent(self, room_id: str) -> list[str]:
        """The messages of a room, oldest first, as they stand on the server."""
        path = f"{CLIENT}/rooms/{quote(room_id)}/messages?dir=f&limit=100"
        events = self.alice.http("GET", path)["chunk"]
        return [event["content"]["body"] for event in events if event["type"] == "m.room.message"]

    async def test_get_versions(self) -> None:
        body = await self.ask_client("/_matrix/client/versions")
        self.assertIn("v1.1", body["versions"])
        self.assertEqual(body["org.matrix.msc3079.low_bandwidth"]["dtls"], self.homeserver.ports.lowbandwidth)

    async def test_the_certificate_is_verified(self) -> None:
        answer, printed = await self.run_client("/0", trusting=str(self.homeserver.certificate_path))
        self.assertIn("v1.1", cbor.decode(answer).value["versions"], printed)
        stranger = self.mktemp()
        with open(stranger, "wb") as file:
            file.write(generate_self_signed(["127.0.0.1"])[0])
        answer, printed = await self.run_client("/0", trusting=stranger)
        self.assertEqual(answer, b"", printed)

    async def test_post_login(self) -> None:
        login = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.alice.name},
            "password": PASSWORD,
        }
        body = await self.ask_client(f"{CLIENT}/login", "-m", "post", body=login)
        self.assertEqual(body["user_id"], self.alice.user_id)
        whoami = await self.ask_client(f"{CLIENT}/account/whoami", "-O", f"256,{body['access_token']}")
        self.assertEqual(whoami["device_id"], body["device_id"])

    async def test_a_wrong_password_is_said_in_synapses_words(self) -> None:
        login = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": self.alice.name},
            "password": "wrong",
        }
        answer, printed = await self.run_client("/1", "-m", "post", body=login)
        self.assertEqual(answer, b"")
        self.assertIn("4.03", printed)
        self.assertIn("M_FORBIDDEN", printed)

    async def test_put_send(self) -> None:
        room_id = self.alice.room()
        message = {"msgtype": "m.text", "body": "from libcoap"}
        path = f"/9/{quote(room_id)}/m.room.message/1"
        body = await self.ask_client(path, "-m", "put", *self.authorized(), body=message)
        self.assertTrue(body["event_id"].startswith("$"))
        self.assertEqual(self.sent(room_id), ["from libcoap"])

    async def test_put_of_many_blocks(self) -> None:
        room_id = self.alice.room()
        message = {"msgtype": "m.text", "body": LONG}
        path = f"/9/{quote(room_id)}/m.room.message/1"
        body = await self.ask_client(path, "-m", "put", "-b", "512", *self.authorized(), body=message)
        self.assertTrue(body["event_id"].startswith("$"))
        self.assertEqual(self.sent(room_id), [LONG])

    async def test_get_of_many_blocks(self) -> None:
        room_id = self.alice.room()
        self.alice.say(room_id, LONG)
        for size in ("1024", "64"):
            with_size = ("-b", size, *self.authorized())
            body = await self.ask_client(f"/E/{quote(room_id)}?dir=b&limit=1", *with_size)
            self.assertEqual(body["chunk"][0]["content"]["body"], LONG)

    async def test_a_request_that_is_not_confirmable(self) -> None:
        body = await self.ask_client(f"{CLIENT}/account/whoami", "-N", *self.authorized())
        self.assertEqual(body["user_id"], self.alice.user_id)

    async def test_json_for_who_asks_for_it(self) -> None:
        answer, _ = await self.run_client(f"{CLIENT}/account/whoami", "-A", "50", *self.authorized())
        self.assertTrue(answer.startswith(b"{"), answer)


class LibcoapOverGnutlsTests(LibcoapTests):
    """The same over GnuTLS."""

    program = "coap-client-gnutls"
