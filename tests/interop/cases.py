# SPDX-License-Identifier: AGPL-3.0-or-later
"""What each build of libcoap's coap-client has to do; in a file of its own, so that the base is not run itself."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import unittest
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079 import cbor
from synapse_lb.testing.throwaway import synapse_is_installed
from synapse_lb.txdtls.certificates import generate_self_signed
from tests.e2e.harness import CLIENT, User, numbers, shared_homeserver

PASSWORD = "correct horse battery"


class InteropTestCase(SynchronousTestCase):
    """A foreign program against a real Synapse, whose log must stay clean."""

    def setUp(self) -> None:
        self.homeserver = shared_homeserver()
        self.folder = Path(self.mktemp()).resolve()
        self.folder.mkdir()
        self._errors_before = len(self.homeserver.error_lines())

    def tearDown(self) -> None:
        self.assertEqual(self.homeserver.error_lines()[self._errors_before :], [])

    def user(self) -> User:
        return User(self.homeserver, f"interop{next(numbers)}")


@unittest.skipUnless(synapse_is_installed(), "matrix-synapse is not installed")
class LibcoapTestCase(InteropTestCase):
    """The tests for each build of coap-client; subclasses name it."""

    program: str

    def setUp(self) -> None:
        if shutil.which(self.program) is None:
            raise unittest.SkipTest(f"{self.program} is not installed (package libcoap3-bin)")
        super().setUp()

    def coap(
        self,
        method: str,
        path: str,
        body: Any = None,
        token: str | None = None,
        options: tuple[str, ...] = (),
        expect_failure: bool = False,
        trusting: Path | None = None,
    ) -> Any:
        """One request: the decoded body of the response, or what was printed if a failure is expected.

        coap-client exits with 0 whatever the response is; an error response is printed and leaves no output
        file. It cuts a path at 100 bytes, so what goes into a room had better go by path code.
        """
        output = self.folder / "answer.cbor"
        output.unlink(missing_ok=True)
        command = [self.program, "-m", method, "-A", "60", "-B", "30", "-o", str(output)]
        trusted = trusting if trusting is not None else self.homeserver.certificate_path
        command += ["-C", str(trusted), *options]
        if token is not None:
            command += ["-O", f"256,{token}"]
        if body is not None:
            (self.folder / "body.cbor").write_bytes(cbor.encode(body, 1))
            command += ["-t", "60", "-f", str(self.folder / "body.cbor")]
        command.append(f"{self.homeserver.coaps_url}{path}")
        finished = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        said = f"{' '.join(command)}\n{finished.stdout}{finished.stderr}"
        self.assertEqual(finished.returncode, 0, said)
        if expect_failure:
            self.assertFalse(output.exists(), said)
            return finished.stdout + finished.stderr
        self.assertTrue(output.exists(), said)
        return cbor.decode(output.read_bytes()).value

    def test_get_versions(self) -> None:
        _, over_http = self.homeserver.request("GET", "/_matrix/client/versions")
        self.assertEqual(self.coap("get", "/_matrix/client/versions"), over_http)
        self.assertEqual(self.coap("get", "/0"), over_http)

    def test_post_login(self) -> None:
        user = self.user()
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user.name},
            "password": PASSWORD,
        }
        answer = self.coap("post", f"{CLIENT}/login", body)
        self.assertEqual(answer["user_id"], user.user_id)
        status, who = self.homeserver.request("GET", f"{CLIENT}/account/whoami", token=answer["access_token"])
        self.assertEqual((status, who["device_id"]), (200, answer["device_id"]))

    def test_a_wrong_password_is_said_in_synapses_words(self) -> None:
        user = self.user()
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user.name},
            "password": "wrong",
        }
        said = self.coap("post", "/1", body, expect_failure=True)
        self.assertIn("4.03", said)
        self.assertIn("M_FORBIDDEN", said)

    def test_the_certificate_is_verified(self) -> None:
        stranger = self.folder / "stranger.crt"
        stranger.write_bytes(generate_self_signed(["127.0.0.1"])[0])
        said = self.coap("get", "/0", expect_failure=True, trusting=stranger)
        self.assertNotIn("2.05", said)

    def test_put_send(self) -> None:
        user = self.user()
        room = user.room()
        body = {"msgtype": "m.text", "body": f"from {self.program}"}
        answer = self.coap("put", f"/9/{room}/m.room.message/txn1", body, user.token)
        event = user.http("GET", f"{CLIENT}/rooms/{room}/event/{answer['event_id']}")
        self.assertEqual(event["content"], body)

    def test_block_wise_get(self) -> None:
        user = self.user()
        room = user.room()
        for number in range(10):
            user.say(room, f"{number} " + "x" * 1500)
        for size in ((), ("-b", "256"), ("-b", "64")):
            answer = self.coap("get", f"/E/{room}?dir=b&limit=10", None, user.token, size)
            texts = [event["content"]["body"] for event in answer["chunk"]]
            self.assertEqual(texts, [f"{number} " + "x" * 1500 for number in reversed(range(10))])

    def test_block_wise_put_and_post(self) -> None:
        user = self.user()
        room = user.room()
        text = base64.b64encode(os.urandom(15_000)).decode()
        body = {"msgtype": "m.text", "body": text}
        answer = self.coap("put", f"/9/{room}/m.room.message/txn2", body, user.token)
        event = user.http("GET", f"{CLIENT}/rooms/{room}/event/{answer['event_id']}")
        self.assertEqual(event["content"], body)
        topic = {"name": "big", "topic": text}
        answer = self.coap("post", f"{CLIENT}/createRoom", topic, user.token, ("-b", "512"))
        state = user.http("GET", f"{CLIENT}/rooms/{answer['room_id']}/state/m.room.topic")
        self.assertEqual(state["topic"], text)

    def test_errors_have_their_code(self) -> None:
        said = self.coap("get", f"{CLIENT}/account/whoami", expect_failure=True)
        self.assertIn("4.01", said)
        said = self.coap("get", "/_matrix/client/v3/no/such/thing", expect_failure=True)
        self.assertIn("4.04", said)

    def test_non_confirmable(self) -> None:
        answer = self.coap("get", "/_matrix/client/versions", options=("-N", "-b", "1024"))
        self.assertIn("v1.1", answer["versions"])

    def test_json(self) -> None:
        output = self.folder / "answer.json"
        command = [self.program, "-m", "get", "-A", "50", "-B", "30", "-n", "-o", str(output)]
        command.append(f"{self.homeserver.coaps_url}{CLIENT}/login")
        subprocess.run(command, capture_output=True, timeout=60, check=True)
        flows = json.loads(output.read_text())["flows"]
        self.assertIn({"type": "m.login.password"}, flows)

    def test_lost_datagrams(self) -> None:
        # The client loses the second datagram that it sends, the hello with the cookie: its timer repeats it.
        answer = self.coap("get", "/_matrix/client/versions", options=("-l", "2"))
        self.assertIn("v1.1", answer["versions"])
