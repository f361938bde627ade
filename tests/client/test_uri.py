# SPDX-License-Identifier: AGPL-3.0-or-later
"""URIs taken apart (RFC 7252 section 6.4), with the examples of its section 6.3 and appendix B."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.errors import BadUri, ClientError, UnsupportedScheme
from synapse_lb.client.uri import CoapUri, parse_server
from synapse_lb.coap.numbers import OptionNumber

URI_HOST, URI_PATH, URI_QUERY = OptionNumber.URI_HOST, OptionNumber.URI_PATH, OptionNumber.URI_QUERY


class Rfc7252ExamplesTests(SynchronousTestCase):
    def test_appendix_b_address_and_root(self) -> None:
        uri = CoapUri.parse("coap://[2001:db8::2:1]/")
        self.assertEqual((uri.host, uri.port), ("2001:db8::2:1", 5683))
        self.assertEqual(uri.options(), ())

    def test_appendix_b_name_and_root(self) -> None:
        uri = CoapUri.parse("coap://example.net/")
        self.assertEqual(uri.options(), ((URI_HOST, b"example.net"),))

    def test_appendix_b_well_known_core(self) -> None:
        uri = CoapUri.parse("coap://example.net/.well-known/core")
        self.assertEqual(
            uri.options(), ((URI_HOST, b"example.net"), (URI_PATH, b".well-known"), (URI_PATH, b"core"))
        )

    def test_appendix_b_internationalised(self) -> None:
        uri = CoapUri.parse("coap://xn--18j4d.example/%E3%81%93%E3%82%93%E3%81%AB%E3%81%A1%E3%81%AF")
        self.assertEqual(uri.host, "xn--18j4d.example")
        self.assertEqual(
            uri.options(),
            ((URI_HOST, b"xn--18j4d.example"), (URI_PATH, "\u3053\u3093\u306b\u3061\u306f".encode())),
        )

    def test_appendix_b_slashes_and_escapes(self) -> None:
        uri = CoapUri.parse("coap://198.51.100.1:61616//%2F//?%2F%2F&?%26")
        self.assertEqual((uri.host, uri.port), ("198.51.100.1", 61616))
        self.assertEqual(
            uri.options(),
            (
                (URI_PATH, b""),
                (URI_PATH, b"/"),
                (URI_PATH, b""),
                (URI_PATH, b""),
                (URI_QUERY, b"//"),
                (URI_QUERY, b"?&"),
            ),
        )

    def test_section_6_3_equivalent_uris(self) -> None:
        """The three URIs of section 6.3 cause the same options to appear."""
        first, *others = (
            CoapUri.parse(uri)
            for uri in (
                "coap://example.com:5683/~sensors/temp.xml",
                "coap://EXAMPLE.com/%7Esensors/temp.xml",
                "coap://EXAMPLE.com:/%7esensors/temp.xml",
            )
        )
        self.assertEqual(
            first.options(),
            ((URI_HOST, b"example.com"), (URI_PATH, b"~sensors"), (URI_PATH, b"temp.xml")),
        )
        self.assertEqual(others, [first, first])


class ParseTests(SynchronousTestCase):
    def test_default_ports(self) -> None:
        self.assertEqual(CoapUri.parse("coaps://h").port, 5684)
        self.assertEqual(CoapUri.parse("COAP://h").port, 5683)

    def test_no_path_and_root_path_are_one(self) -> None:
        self.assertEqual(CoapUri.parse("coaps://h").path, ())
        self.assertEqual(CoapUri.parse("coaps://h/").path, ())
        self.assertEqual(CoapUri.parse("coaps://h/a/").path, (b"a", b""))

    def test_query_without_path(self) -> None:
        uri = CoapUri.parse("coaps://h?a=b&c")
        self.assertEqual((uri.path, uri.query), ((), (b"a=b", b"c")))

    def test_plus_stays_and_characters_outside_ascii_are_utf8(self) -> None:
        uri = CoapUri.parse("coaps://h/a+b/é?q=+ü")
        self.assertEqual(uri.path, (b"a+b", "é".encode()))
        self.assertEqual(uri.query, ("q=+ü".encode(),))

    def test_matrix_identifiers(self) -> None:
        uri = CoapUri.parse("coaps://h/_matrix/client/v3/directory/room/%23a%2Fb:localhost")
        self.assertEqual(uri.path[-1], b"#a/b:localhost")

    def test_name_outside_ascii_is_looked_up_in_its_ascii_form(self) -> None:
        uri = CoapUri.parse("coaps://b%C3%BCcher.example/")
        self.assertEqual(uri.host, "xn--bcher-kva.example")
        self.assertEqual(uri.uri_host, "bücher.example".encode())

    def test_ipv6_zone(self) -> None:
        self.assertEqual(CoapUri.parse("coaps://[fe80::1%25eth0]:8008/").host, "fe80::1%eth0")

    def test_longest_segment(self) -> None:
        self.assertEqual(CoapUri.parse("coaps://h/" + "a" * 255).path, (b"a" * 255,))
        with self.assertRaisesRegex(BadUri, "255"):
            CoapUri.parse("coaps://h/" + "a" * 256)

    def test_bad(self) -> None:
        for uri in (
            "",
            "/path",
            "h:8008/path",
            "coaps:path",
            "coaps://",
            "coaps:///path",
            "coaps://h/#fragment",
            "coaps://h/#",
            "coaps://user@h/",
            "coaps://h:0/",
            "coaps://h:65536/",
            "coaps://h:x/",
            "coaps://h:1:2/",
            "coaps://[::1/",
            "coaps://[::g]/",
            "coaps://[]/",
            "coaps://[1.2.3.4]/",
            "coaps://h/%",
            "coaps://h/%4",
            "coaps://h/%zz",
            "coaps://h/a b",
            "coaps://h/\n",
            "coaps://%ff/",
            "coaps://a..b/",
            "coaps://" + "a" * 64 + ".example/",
            "coaps://h/\ud800",
        ):
            with self.subTest(uri=uri):
                self.assertRaises(BadUri, CoapUri.parse, uri)

    def test_other_schemes_are_told_apart(self) -> None:
        self.assertRaises(UnsupportedScheme, CoapUri.parse, "https://h/")
        self.assertTrue(issubclass(UnsupportedScheme, ClientError))


class ParseServerTests(SynchronousTestCase):
    def test_with_and_without_scheme(self) -> None:
        for address in ("coaps://localhost:8008", "coaps://localhost:8008/", "localhost:8008"):
            uri = parse_server(address)
            self.assertEqual((uri.host, uri.port), ("localhost", 8008))

    def test_ipv6(self) -> None:
        uri = parse_server("[::1]:8008")
        self.assertEqual((uri.host, uri.port), ("::1", 8008))

    def test_no_path(self) -> None:
        for address in ("localhost:8008/_matrix", "localhost:8008?a"):
            self.assertRaises(BadUri, parse_server, address)

    def test_no_plain_coap(self) -> None:
        self.assertRaises(UnsupportedScheme, parse_server, "coap://localhost:8008")
