# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tables are those of the MSC, and our plain numbers those of the `coap` room and of the RFCs."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.msc3079 import codes, keys_v1, options, paths_v1
from tests.msc3079.strategies import table


class KeyTableTests(SynchronousTestCase):
    """Appendix A of the MSC."""

    def test_equals_the_published_table(self) -> None:
        published = {key: int(integer) for key, integer in table("keys_v1.tsv")}
        self.assertEqual(len(published), 104)
        self.assertEqual(dict(keys_v1.KEY_TO_INTEGER), published)

    def test_one_to_one(self) -> None:
        self.assertEqual(
            dict(keys_v1.INTEGER_TO_KEY), {integer: key for key, integer in keys_v1.KEY_TO_INTEGER.items()}
        )
        self.assertEqual(sorted(keys_v1.INTEGER_TO_KEY), list(range(1, 105)))

    def test_nothing_of_later_extensions(self) -> None:
        """Version 1 ends at 104; what others have added since stays out of it."""
        for key, integer in table("keys_105_148.tsv"):
            self.assertNotIn(key, keys_v1.KEY_TO_INTEGER)
            self.assertNotIn(int(integer), keys_v1.INTEGER_TO_KEY)

    def test_cannot_be_changed(self) -> None:
        with self.assertRaises(TypeError):
            keys_v1.KEY_TO_INTEGER["x"] = 1  # type: ignore[index] # the type forbids it as well
        self.assertEqual(len(keys_v1.KEY_TO_INTEGER), 104)


class PathTableTests(SynchronousTestCase):
    """Appendix B of the MSC."""

    def test_equals_the_published_table(self) -> None:
        published = dict(table("paths_v1.tsv"))
        self.assertEqual(len(published), 57)
        self.assertEqual(dict(paths_v1.CODE_TO_PATH), published)

    def test_codes_are_single_characters(self) -> None:
        self.assertEqual({len(code) for code in paths_v1.CODE_TO_PATH}, {1})


class NumberTests(SynchronousTestCase):
    """The plain numbers of this room."""

    def test_codes_are_those_of_coap(self) -> None:
        ours = {
            name: value for name, value in vars(codes).items() if name.isupper() and isinstance(value, int)
        }
        self.assertGreater(len(ours), 25)
        self.assertEqual(ours, {name: int(Code[name]) for name in ours})

    def test_options_are_those_of_coap(self) -> None:
        for name in (
            "URI_HOST",
            "URI_PORT",
            "URI_PATH",
            "CONTENT_FORMAT",
            "MAX_AGE",
            "URI_QUERY",
            "ACCEPT",
            "Q_BLOCK1",
            "BLOCK2",
            "BLOCK1",
            "Q_BLOCK2",
        ):
            self.assertEqual(getattr(options, name), int(OptionNumber[name]), name)

    def test_options_of_the_msc(self) -> None:
        """The access token is elective, the key version critical (RFC 7252 section 5.4.6)."""
        self.assertEqual((options.ACCESS_TOKEN, options.KEY_VERSION), (256, 257))
        self.assertEqual(options.ACCESS_TOKEN & 1, 0)
        self.assertEqual(options.KEY_VERSION & 1, 1)

    def test_every_handled_option_is_critical(self) -> None:
        self.assertEqual({number & 1 for number in options.HANDLED_CRITICAL}, {1})

    def test_uint(self) -> None:
        """RFC 7252 section 3.2: the shortest form, and 0 is the empty string."""
        for value, encoded in ((0, b""), (1, b"\x01"), (255, b"\xff"), (256, b"\x01\x00"), (60, b"<")):
            self.assertEqual(options.encode_uint(value), encoded)
            self.assertEqual(options.decode_uint(encoded), value)
        self.assertEqual(options.decode_uint(b"\x00\x00\x05"), 5)
