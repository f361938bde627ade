# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the gateway lets through, and what it changes in answers."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.standalone.rewriting import (
    VERSIONS,
    VERSIONS_KEY,
    WELL_KNOWN,
    Advertisement,
    goes_over_coap,
    goes_over_tcp,
)

OURS = "https://lb.example.com:8448"
THEIRS: dict[str, Any] = {
    "m.homeserver": {"base_url": "https://hs.example.com", "x": 1},
    "m.identity_server": {"y": 2},
}
LOGIN = "/_matrix/client/v3/login"


class AppliedTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.advertisement = Advertisement(8448, OURS)

    def test_versions(self) -> None:
        self.assertEqual(
            self.advertisement.applied(
                VERSIONS, 200, {"versions": ["v1.1"], "unstable_features": {"a": True}}
            ),
            (
                200,
                {
                    "versions": ["v1.1"],
                    "unstable_features": {"a": True},
                    VERSIONS_KEY: {
                        "dtls": 8448,
                        "cbor_enum_version": 1,
                        "coap_enum_version": 1,
                        "q_block": 1,
                        "observe": 1,
                        "x1": 1,
                    },
                },
            ),
        )

    def test_versions_without_observe(self) -> None:
        _, body = Advertisement(1, observe=False).applied(VERSIONS, 200, {"versions": []})
        self.assertNotIn("observe", body[VERSIONS_KEY])

    def test_versions_without_x1(self) -> None:
        _, body = Advertisement(1, x1=False).applied(VERSIONS, 200, {"versions": []})
        self.assertNotIn("x1", body[VERSIONS_KEY])

    def test_well_known(self) -> None:
        status, body = self.advertisement.applied(WELL_KNOWN, 200, THEIRS)
        self.assertEqual(
            (status, body), (200, {"m.homeserver": {"base_url": OURS, "x": 1}, "m.identity_server": {"y": 2}})
        )

    def test_no_well_known(self) -> None:
        self.assertEqual(
            self.advertisement.applied(WELL_KNOWN, 404, None), (200, {"m.homeserver": {"base_url": OURS}})
        )

    def test_login(self) -> None:
        for path in (LOGIN, "/_matrix/client/r0/register", LOGIN + "/"):
            status, body = self.advertisement.applied(path, 200, {"access_token": "t", "well_known": THEIRS})
            self.assertEqual(status, 200)
            self.assertEqual(body["well_known"]["m.homeserver"]["base_url"], OURS)
            self.assertEqual(body["well_known"]["m.identity_server"], {"y": 2})
            self.assertEqual(body["access_token"], "t")
        self.assertEqual(THEIRS["m.homeserver"]["base_url"], "https://hs.example.com")

    def test_what_stays(self) -> None:
        for path, status, body in (
            (VERSIONS, 500, {"errcode": "M_UNKNOWN"}),
            (VERSIONS, 200, None),
            (WELL_KNOWN, 500, {}),
            (LOGIN, 403, {"well_known": THEIRS}),
            (LOGIN, 200, {"well_known": 1}),
            (LOGIN, 200, {"access_token": "t"}),
            (LOGIN, 200, [1]),
            ("/_matrix/client/v3/sync", 200, {"well_known": THEIRS}),
        ):
            self.assertEqual(self.advertisement.applied(path, status, body), (status, body))

    def test_nothing_advertised(self) -> None:
        plain = Advertisement(8448)
        for path, body in ((WELL_KNOWN, THEIRS), (LOGIN, {"well_known": THEIRS})):
            self.assertEqual(plain.applied(path, 200, body), (200, body))
        self.assertEqual(plain.applied(WELL_KNOWN, 404, None), (404, None))

    def test_what_may_have_to_be_changed(self) -> None:
        for path in (VERSIONS, WELL_KNOWN, LOGIN, "/_matrix/client/v3/register"):
            self.assertTrue(self.advertisement.concerns(path), path)
        for path in ("/_matrix/client/v3/sync", LOGIN + "/sso/redirect", "/_matrix/media/v3/download/a/b"):
            self.assertFalse(self.advertisement.concerns(path), path)


class LetThroughTests(SynchronousTestCase):
    """Administrators, monitors and other servers do not come this way."""

    def test_coap(self) -> None:
        for path in (
            "/_matrix/client/versions",
            "/_matrix/client/v3/rooms/!a:b/state/t/.k",
            "/_matrix/client/x/..a",
        ):
            self.assertTrue(goes_over_coap(path), path)
        for path in ("/_matrix/media/v3/config", "/_synapse/admin/v1/users", "/", "", "/_matrix/clientx/a"):
            self.assertFalse(goes_over_coap(path), path)

    def test_tcp(self) -> None:
        for path in (
            "/_matrix/client/versions",
            "/_matrix/media/v3/download/a/b",
            "/_matrix/static/x.css",
            "/_synapse/client/pick_idp",
            "/.well-known/matrix/client",
        ):
            self.assertTrue(goes_over_tcp(path), path)
        for path in (
            "/_synapse/admin/v1/users",
            "/_synapse/metrics",
            "/_synapse/mas/x",
            "/_matrix/federation/v1/version",
            "/_matrix/key/v2/server",
            "/.well-known/matrix/server",
            "/.well-known/matrix/clientx",
            "/metrics",
            "/",
        ):
            self.assertFalse(goes_over_tcp(path), path)

    def test_dots(self) -> None:
        for dots in ("..", ".", "%2e%2e", "%2E.", ".%2e", "%2e"):
            for path in (f"/_matrix/client/{dots}/_synapse/admin", f"/_matrix/client/{dots}"):
                self.assertFalse(goes_over_coap(path) or goes_over_tcp(path), path)
