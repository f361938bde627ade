# SPDX-License-Identifier: AGPL-3.0-or-later
"""Options: their order, formats, registry, and what is done with those that are not recognized."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.errors import OptionError
from synapse_lb.coap.numbers import OptionNumber
from synapse_lb.coap.options import (
    REGISTRY,
    OptionPair,
    Options,
    decode_uint,
    encode_uint,
    is_critical,
    is_no_cache_key,
    is_unsafe,
    option_name,
    strip_unrecognized_elective,
    unrecognized_critical,
)
from tests.coap.strategies import ANY_NUMBERS, ANY_OPTIONS, ANY_VALUES, PROPERTY


class UintTests(SynchronousTestCase):
    def test_shortest_form(self) -> None:
        """RFC 7252 section 3.2: 0 takes no byte, and no zero byte comes first."""
        for value, encoded in (
            (0, b""),
            (1, b"\x01"),
            (255, b"\xff"),
            (256, b"\x01\x00"),
            (65535, b"\xff\xff"),
            (65536, b"\x01\x00\x00"),
            (2**32 - 1, b"\xff\xff\xff\xff"),
        ):
            self.assertEqual(encode_uint(value), encoded)
            self.assertEqual(decode_uint(encoded), value)

    def test_leading_zero_bytes_are_read(self) -> None:
        """RFC 7252 section 3.2: a recipient must be prepared for them."""
        self.assertEqual(decode_uint(b"\x00"), 0)
        self.assertEqual(decode_uint(b"\x00\x00\x3c"), 60)

    def test_negative(self) -> None:
        self.assertRaises(OptionError, encode_uint, -1)

    @PROPERTY
    @given(st.integers(min_value=0, max_value=2**64))
    def test_round_trip(self, value: int) -> None:
        encoded = encode_uint(value)
        self.assertEqual(decode_uint(encoded), value)
        self.assertFalse(encoded.startswith(b"\x00"))


class NumberPropertyTests(SynchronousTestCase):
    def test_columns_c_u_n(self) -> None:
        """The columns C, U and N of RFC 7252 table 4, RFC 7641, 7959, 7967, 8613, 9175 and 9177."""
        columns = {
            "If-Match": "C",
            "Uri-Host": "CU",
            "ETag": "",
            "If-None-Match": "C",
            "Observe": "U",
            "Uri-Port": "CU",
            "Location-Path": "",
            "OSCORE": "C",
            "Uri-Path": "CU",
            "Content-Format": "",
            "Max-Age": "U",
            "Uri-Query": "CU",
            "Accept": "C",
            "Q-Block1": "CU",
            "Location-Query": "",
            "Block2": "CU",
            "Block1": "CU",
            "Size2": "N",
            "Q-Block2": "CU",
            "Proxy-Uri": "CU",
            "Proxy-Scheme": "CU",
            "Size1": "N",
            "Echo": "N",
            "No-Response": "U",
            "Request-Tag": "",
        }
        found = {
            definition.name: "".join(
                letter
                for letter, applies in (("C", is_critical), ("U", is_unsafe), ("N", is_no_cache_key))
                if applies(number)
            )
            for number, definition in REGISTRY.items()
        }
        self.assertEqual(found, columns)

    def test_options_of_msc3079(self) -> None:
        """By its number 256 (access token) is elective and 257 (key version) critical."""
        self.assertFalse(is_critical(256))
        self.assertTrue(is_critical(257))


class RegistryTests(SynchronousTestCase):
    def test_formats_lengths_and_repeatability(self) -> None:
        """RFC 7252 table 4, RFC 7641 table 1, RFC 7959 table 1, RFC 7967 table 1, RFC 8613, 9175 and 9177."""
        self.assertEqual(
            [
                (number, d.format.value, d.min_length, d.max_length, d.repeatable)
                for number, d in sorted(REGISTRY.items())
            ],
            [
                (1, "opaque", 0, 8, True),
                (3, "string", 1, 255, False),
                (4, "opaque", 1, 8, True),
                (5, "empty", 0, 0, False),
                (6, "uint", 0, 3, False),
                (7, "uint", 0, 2, False),
                (8, "string", 0, 255, True),
                (9, "opaque", 0, 255, False),
                (11, "string", 0, 255, True),
                (12, "uint", 0, 2, False),
                (14, "uint", 0, 4, False),
                (15, "string", 0, 255, True),
                (17, "uint", 0, 2, False),
                (19, "uint", 0, 3, False),
                (20, "string", 0, 255, True),
                (23, "uint", 0, 3, False),
                (27, "uint", 0, 3, False),
                (28, "uint", 0, 4, False),
                (31, "uint", 0, 3, True),
                (35, "string", 1, 1034, False),
                (39, "string", 1, 255, False),
                (60, "uint", 0, 4, False),
                (252, "opaque", 1, 40, False),
                (258, "uint", 0, 1, False),
                (292, "opaque", 0, 8, True),
            ],
        )

    def test_every_named_number_is_registered(self) -> None:
        self.assertEqual(set(REGISTRY), set(OptionNumber))

    def test_names(self) -> None:
        self.assertEqual(option_name(OptionNumber.URI_PATH), "Uri-Path")
        self.assertEqual(option_name(257), "257")


class OptionsTests(SynchronousTestCase):
    def test_number_order_and_stability(self) -> None:
        """RFC 7252 section 3.1: by number; those of one number keep their order."""
        options = Options.of((15, b"q1"), (11, b"b"), (3, b"host"), (11, b"a"), (15, b"q0"))
        self.assertEqual(list(options), [(3, b"host"), (11, b"b"), (11, b"a"), (15, b"q1"), (15, b"q0")])
        self.assertEqual(len(options), 5)

    def test_equality_and_hash_are_by_content(self) -> None:
        one = Options.of((15, b"q"), (11, b"p"))
        other = Options.of((11, b"p"), (15, b"q"))
        self.assertEqual(one, other)
        self.assertEqual(hash(one), hash(other))
        self.assertNotEqual(Options.of((11, b"a"), (11, b"b")), Options.of((11, b"b"), (11, b"a")))

    def test_access(self) -> None:
        options = Options.of((11, b"a"), (11, b"b"), (12, b"\x3c"))
        self.assertEqual(options.get(11), b"a")
        self.assertEqual(options.get_all(11), (b"a", b"b"))
        self.assertEqual(options.get_uint(12), 60)
        self.assertIn(11, options)
        self.assertNotIn(15, options)
        self.assertIsNone(options.get(15))
        self.assertIsNone(options.get_uint(15))
        self.assertEqual(options.get_all(15), ())

    def test_an_empty_value_is_not_an_absent_one(self) -> None:
        options = Options.of((OptionNumber.OBSERVE, b""))
        self.assertEqual(options.get(OptionNumber.OBSERVE), b"")
        self.assertEqual(options.get_uint(OptionNumber.OBSERVE), 0)

    def test_copies(self) -> None:
        options = Options.of((11, b"a"), (12, b"\x3c"))
        self.assertEqual(options.with_option(11, b"b"), Options.of((11, b"a"), (11, b"b"), (12, b"\x3c")))
        self.assertEqual(options.with_uint(14, 300).get(14), b"\x01\x2c")
        self.assertEqual(options.replacing(12, b"\x32"), Options.of((11, b"a"), (12, b"\x32")))
        self.assertEqual(options.replacing(14, b"\x32"), options.with_option(14, b"\x32"))
        self.assertEqual(options.without(11, 12), Options())
        self.assertEqual(options, Options.of((11, b"a"), (12, b"\x3c")))
        self.assertRaises(OptionError, options.with_uint, 14, -1)

    def test_cache_key(self) -> None:
        """RFC 7252 section 5.6: NoCacheKey options (Size1, Echo) do not count; named ones may be left out."""
        plain = Options.of((11, b"sync"), (15, b"since=1"))
        dressed = plain.with_uint(OptionNumber.SIZE1, 9).with_option(OptionNumber.ECHO, b"e").with_uint(23, 6)
        self.assertNotEqual(dressed.cache_key(), plain.cache_key())
        self.assertEqual(dressed.cache_key({OptionNumber.BLOCK2}), plain.cache_key())
        self.assertNotEqual(plain.cache_key(), Options.of((11, b"sync"), (15, b"since=2")).cache_key())

    def test_representation_shows_no_credentials(self) -> None:
        options = Options.of(
            (11, b"sync"), (15, b"access_token=secret"), (256, b"secret"), (12, b"\x3c"), (4, b"\xab\xcd")
        )
        self.assertEqual(
            repr(options),
            "Options(ETag: 0xabcd, Uri-Path: 'sync', Content-Format: 60, Uri-Query: <19 bytes>, 256: <6 bytes>)",
        )

    def test_representation_of_what_is_not_utf_8(self) -> None:
        self.assertEqual(repr(Options.of((11, b"\xff"))), "Options(Uri-Path: '\\\\xff')")

    @PROPERTY
    @given(st.lists(st.tuples(ANY_NUMBERS, ANY_VALUES), max_size=12))
    def test_any_order_in_gives_number_order_out(self, pairs: list[OptionPair]) -> None:
        options = Options.of(*pairs)
        self.assertEqual(list(options), sorted(pairs, key=lambda pair: pair[0]))
        for number, _ in pairs:
            self.assertEqual(options.get_all(number), tuple(v for n, v in pairs if n == number))


class UnrecognizedCriticalTests(SynchronousTestCase):
    def test_all_recognized(self) -> None:
        options = Options.of(
            (3, b"h"), (7, b"\x16\x33"), (11, b"a"), (11, b"b"), (15, b"q"), (15, b"r"), (17, b"\x3c"),
            (23, b"\x06"), (27, b"\x0e"), (35, b"coap://x"), (39, b"coap"),
        )  # fmt: skip
        self.assertIsNone(unrecognized_critical(options))
        self.assertIsNone(unrecognized_critical(Options()))

    def test_unknown_number(self) -> None:
        """RFC 7252 section 5.4.1; the first one is named."""
        self.assertEqual(unrecognized_critical(Options.of((11, b"a"), (2049, b""), (2051, b""))), 2049)

    def test_known_but_not_handled(self) -> None:
        for number in (
            OptionNumber.IF_MATCH,
            OptionNumber.IF_NONE_MATCH,
            OptionNumber.OSCORE,
            OptionNumber.Q_BLOCK1,
            OptionNumber.Q_BLOCK2,
        ):
            self.assertEqual(unrecognized_critical(Options.of((number, b""))), number)
            self.assertIsNone(unrecognized_critical(Options.of((number, b"")), {number}))

    def test_what_the_application_understands(self) -> None:
        options = Options.of((257, b"\x01"))
        self.assertEqual(unrecognized_critical(options), 257)
        self.assertIsNone(unrecognized_critical(options, {257}))

    def test_unknown_elective_options_do_not_matter(self) -> None:
        self.assertIsNone(unrecognized_critical(Options.of((2048, b"x" * 300), (2048, b""))))

    def test_length_out_of_range(self) -> None:
        """RFC 7252 section 5.4.3."""
        for number, value in ((3, b""), (7, b"\x00\x16\x33"), (11, b"x" * 256), (17, b"abc"), (27, b"abcd")):
            self.assertEqual(unrecognized_critical(Options.of((number, value))), number)
        self.assertIsNone(unrecognized_critical(Options.of((11, b"x" * 255))))

    def test_repeated_though_not_repeatable(self) -> None:
        """RFC 7252 section 5.4.5."""
        self.assertEqual(unrecognized_critical(Options.of((17, b"\x3c"), (17, b"\x32"))), 17)
        self.assertEqual(unrecognized_critical(Options.of((27, b"\x06"), (27, b"\x16"))), 27)

    def test_understanding_does_not_excuse_a_wrong_length(self) -> None:
        number = OptionNumber.Q_BLOCK1
        self.assertEqual(unrecognized_critical(Options.of((number, b"abcd")), {number}), number)


class StripUnrecognizedElectiveTests(SynchronousTestCase):
    def test_wrong_lengths_go(self) -> None:
        """RFC 7252 sections 5.4.1 and 5.4.3."""
        options = Options.of((4, b""), (6, b"abcd"), (12, b"abc"), (258, b"ab"), (11, b"a"))
        self.assertEqual(strip_unrecognized_elective(options), Options.of((11, b"a")))

    def test_only_the_first_of_a_single_one_stays(self) -> None:
        """RFC 7252 section 5.4.5: each supernumerary occurrence is treated like an unrecognized option."""
        options = Options.of((12, b"\x3c"), (12, b"\x32"), (12, b""), (4, b"a"), (4, b"b"))
        self.assertEqual(
            strip_unrecognized_elective(options), Options.of((4, b"a"), (4, b"b"), (12, b"\x3c"))
        )

    def test_unregistered_ones_stay(self) -> None:
        options = Options.of((256, b"t" * 300), (256, b"u"), (2048, b""))
        self.assertIs(strip_unrecognized_elective(options), options)

    def test_critical_ones_stay(self) -> None:
        options = Options.of((17, b"abc"), (17, b""))
        self.assertEqual(strip_unrecognized_elective(options), options)

    @PROPERTY
    @given(ANY_OPTIONS)
    def test_what_is_left_is_legal_and_in_order(self, options: Options) -> None:
        kept = strip_unrecognized_elective(options)
        self.assertEqual(strip_unrecognized_elective(kept), kept)
        remaining = iter(options)
        self.assertTrue(all(pair in remaining for pair in kept))
        for number, value in kept:
            definition = REGISTRY.get(number)
            if definition is not None and not is_critical(number):
                self.assertTrue(definition.min_length <= len(value) <= definition.max_length)
                self.assertTrue(definition.repeatable or len(kept.get_all(number)) == 1)
