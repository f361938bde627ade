# SPDX-License-Identifier: AGPL-3.0-or-later
"""Access tokens in fewer bytes, to the letter."""

from __future__ import annotations

import random
import re
import string
import zlib
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.errors import MappingError
from synapse_lb.msc3079.extension import X1_WRITTEN
from synapse_lb.msc3079.mapping import NO_BODY, decode_request, encode_x1_request, note_token
from synapse_lb.msc3079.options import ACCESS_TOKEN, first
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.msc3079.x1 import AliasBook, Side
from synapse_lb.msc3079.x1.tokens import is_packed, pack_access_token, unpack_access_token

DOCUMENT: Final = Path(__file__).resolve().parents[3] / "docs" / "extensions.md"
LETTERS: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase


def checksum(base: str) -> str:
    """As Synapse writes it."""
    number, text = zlib.crc32(base.encode()), ""
    while number:
        number, digit = divmod(number, 62)
        text = LETTERS[digit] + text
    return text.rjust(6, "0")


def synapses(localpart: str, letters: str) -> str:
    """A token of Synapse's; `localpart` in base64."""
    base = f"syt_{localpart}_{letters}"
    return f"{base}_{checksum(base)}"


def services(prefix: str, letters: str) -> str:
    """A token of the Matrix Authentication Service, whose checksum has its digits the other way round."""
    base = f"{prefix}_{letters}"
    return f"{base}_{checksum(base).lstrip('0')[::-1].rjust(6, '0')}"


class TokenTests(SynchronousTestCase):
    """Texts and bytes."""

    def test_sizes(self) -> None:
        """A fixed part, and the localpart as it is."""
        token = synapses("YWxpeA", "abcdefghijKLMNOPQRST")
        packed = pack_access_token(token)
        assert packed is not None
        self.assertEqual((len(token), len(packed), packed[-4:]), (38, 20, b"alix"))
        for prefix in ("mat", "mct"):
            self.assertEqual(len(pack_access_token(services(prefix, "a" * 30)) or b""), 24)

    def test_to_the_letter(self) -> None:
        source = random.Random(256)
        for index in range(300):
            letters = "".join(source.choices(string.ascii_letters, k=20))
            localpart = ("", "YQ", "YWI", "YWxpY2U", "w6TDtsO8")[index % 5]
            digits = "".join(source.choices(LETTERS, k=30))
            for token in (synapses(localpart, letters), services("mat", digits), services("mct", digits)):
                packed = pack_access_token(token)
                assert packed is not None, token
                self.assertTrue(is_packed(packed))
                self.assertEqual(unpack_access_token(packed), token)

    def test_extremes(self) -> None:
        for token in (synapses("", "a" * 20), synapses("", "Z" * 20), services("mat", "z" * 30)):
            self.assertEqual(unpack_access_token(pack_access_token(token) or b""), token)

    def test_what_is_left_as_it_is(self) -> None:
        """Another checksum, other letters, base64 that does not come back, another prefix."""
        good = synapses("YWxpeA", "abcdefghijKLMNOPQRST")
        for token in (
            "",
            "t0k3n",
            good[:-1],
            good[:-1] + ("0" if good[-1] != "0" else "1"),
            good.replace("syt", "syr"),
            synapses("YWxpeB", "abcdefghijKLMNOPQRST"),
            synapses("YWxpe", "abcdefghijKLMNOPQRST"),
            synapses("YWxpeA", "abcdefghijKLMNOPQRS1"),
            synapses("YWxpeA", "abcdefghijKLMNOPQRS"),
            services("mar", "a" * 30),
            services("mat", "a" * 29),
            good + "\n",
        ):
            self.assertIsNone(pack_access_token(token), token)

    def test_bytes_that_are_none(self) -> None:
        for packed in (
            b"",
            b"t0k3n",
            b"\x80" + bytes(14),
            b"\x80" + b"\xff" * 15,
            b"\x81" + bytes(22),
            b"\x81" + bytes(24),
            b"\x81" + b"\xff" * 23,
            b"\x83" + bytes(23),
        ):
            self.assertIsNone(unpack_access_token(packed), packed.hex())

    def test_document(self) -> None:
        text = DOCUMENT.read_text(encoding="utf-8").split("### Access tokens", 1)[1].split("\n#", 1)[0]
        found = re.findall(r"`([0-9a-f]{40,})` is `([a-z]+_[^`]*)`", text)
        self.assertEqual(len(found), 2)
        for packed, token in found:
            self.assertEqual(unpack_access_token(bytes.fromhex(packed)), token)
            self.assertEqual(pack_access_token(token), bytes.fromhex(packed))


class OptionTests(SynchronousTestCase):
    """Option 256."""

    token = synapses("YWxpeA", "abcdefghijKLMNOPQRST")

    def request(self, token: str) -> list[tuple[int, bytes]]:
        book = AliasBook(Side.CLIENT)
        path = "/_matrix/client/v3/account/whoami"
        return encode_x1_request("GET", path, (), NO_BODY, book, token=token, announce=True).options

    def test_there_and_back(self) -> None:
        for token, packed in ((self.token, True), ("t0k3n", False)):
            options = self.request(token)
            self.assertEqual(is_packed(first(options, ACCESS_TOKEN) or b""), packed)
            sticky = StickyState(allows_x1=True)
            note_token(options, sticky)
            self.assertEqual(sticky.token, token)
            self.assertEqual(decode_request(1, options, b"", sticky).access_token, token)
            self.assertEqual(sticky.token, token)

    def test_what_stands_for_no_token_is_refused(self) -> None:
        for value in (b"\x80", b"\x80" + b"\xff" * 20, b"\xbf", b"\x85" + bytes(20)):
            options = [(ACCESS_TOKEN, value), (X1_WRITTEN, b"\1")]
            sticky = StickyState(allows_x1=True)
            sticky.token = "somebody's"
            with self.assertRaises(MappingError) as caught:
                decode_request(1, options, b"", sticky)
            self.assertEqual(caught.exception.errcode, "M_INVALID_PARAM")
            self.assertIsNone(sticky.token)
