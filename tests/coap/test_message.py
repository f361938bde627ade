# SPDX-License-Identifier: AGPL-3.0-or-later
"""The wire form of messages (RFC 7252 sections 3, 3.1, 4.1-4.3)."""

from __future__ import annotations

from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.errors import MessageError, MessageFormatError, OptionError
from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, Type
from synapse_lb.coap.options import Options
from tests.coap.strategies import PROPERTY, messages


class HeaderTests(SynchronousTestCase):
    """RFC 7252 section 3, figure 7."""

    def test_fields(self) -> None:
        message = Message(Type.NON, Code.POST, 0x1234, b"\xaa\xbb")
        self.assertEqual(message.encode().hex(), "52021234aabb")
        self.assertEqual(Message.decode(bytes.fromhex("52021234aabb")), message)

    def test_all_types(self) -> None:
        for type_, first in ((Type.CON, 0x40), (Type.NON, 0x50), (Type.ACK, 0x60)):
            self.assertEqual(Message(type_, Code.CONTENT, 0).encode(), bytes((first, 0x45, 0, 0)))
        self.assertEqual(Message(Type.RST, Code.EMPTY, 0xFFFF).encode().hex(), "7000ffff")

    def test_all_token_lengths(self) -> None:
        for length in range(9):
            message = Message(Type.CON, Code.GET, 1, bytes(range(length)))
            self.assertEqual(message.encode()[0], 0x40 | length)
            self.assertEqual(Message.decode(message.encode()), message)

    def test_payload(self) -> None:
        message = Message(Type.CON, Code.POST, 1, payload=b"\xff\x00")
        self.assertEqual(message.encode().hex(), "40020001ffff00")
        self.assertEqual(Message.decode(message.encode()), message)

    def test_unassigned_codes_of_known_classes_pass(self) -> None:
        """They are for the next layer: an unknown method is a 4.05 (section 5.8), 3.xx is a response (12.1)."""
        self.assertEqual(Message.decode(bytes.fromhex("401f0001")).code, 0x1F)
        self.assertEqual(Message.decode(bytes.fromhex("60600001")).code, 0x60)


class OptionFormatTests(SynchronousTestCase):
    """RFC 7252 section 3.1, figure 8."""

    def test_extended_deltas_and_lengths(self) -> None:
        for number, length, header in (
            (0, 0, "00"),
            (12, 12, "cc"),
            (13, 12, "dc00"),
            (12, 13, "cd00"),
            (13, 13, "dd0000"),
            (268, 268, "ddffff"),
            (269, 268, "ed0000ff"),
            (268, 269, "deff0000"),
            (269, 269, "ee00000000"),
            (65535, 0, "e0fef2"),
            (0, 65804, "0effff"),
        ):
            value = b"v" * length
            message = Message(Type.CON, Code.GET, 1, options=Options.of((number, value)))
            data = message.encode()
            self.assertEqual(data[4 : -length or None].hex(), header)
            self.assertEqual(Message.decode(data), message)

    def test_deltas_add_up(self) -> None:
        data = bytes.fromhex("40010001" + "3161" + "8162" + "0163" + "4164")
        self.assertEqual(list(Message.decode(data).options), [(3, b"a"), (11, b"b"), (11, b"c"), (15, b"d")])
        self.assertEqual(Message.decode(data).encode(), data)

    def test_options_are_written_in_number_order(self) -> None:
        unordered = Message(Type.CON, Code.GET, 1, options=Options.of((15, b"d"), (3, b"a")))
        self.assertEqual(unordered.encode().hex(), "40010001" + "3161" + "c164")


class MalformedTests(SynchronousTestCase):
    """RFC 7252: what is a message format error, and what stays known of the message."""

    def assert_malformed(self, data: str, reason: str, type_: Type | None, message_id: int | None) -> None:
        error = self.assertRaises(MessageFormatError, Message.decode, bytes.fromhex(data))
        self.assertIn(reason, error.reason)
        self.assertEqual((error.type, error.message_id), (type_, message_id))

    def test_shorter_than_a_header(self) -> None:
        for data in ("", "40", "4001", "400112"):
            self.assert_malformed(data, f"a datagram of {len(data) // 2} bytes", None, None)

    def test_unknown_versions(self) -> None:
        """Section 3: ignored silently, so there is nothing to send a Reset with."""
        for first, version in (("00", 0), ("80", 2), ("c0", 3)):
            self.assert_malformed(first + "011234", f"version {version}", None, None)

    def test_reserved_token_lengths(self) -> None:
        for length in range(9, 16):
            self.assert_malformed(f"4{length:x}011234" + "00" * 16, "token length", Type.CON, 0x1234)

    def test_truncated_token(self) -> None:
        self.assert_malformed("4201123400", "inside the token", Type.CON, 0x1234)
        self.assert_malformed("58011234", "inside the token", Type.NON, 0x1234)

    def test_empty_message_with_anything_behind_the_header(self) -> None:
        """Section 4.1: the token length is 0 and no bytes follow the message id."""
        for data in ("4000123400", "4100123400", "40001234ff", "40001234b161", "600012340000"):
            self.assert_malformed(data, "Empty", Type(int(data[0], 16) & 3), 0x1234)
        self.assert_malformed("41001234", "inside the token", Type.CON, 0x1234)

    def test_reserved_classes(self) -> None:
        """Section 4.2: 1, 6 and 7."""
        for code in (0x20, 0x3F, 0xC0, 0xDF, 0xE0, 0xFF):
            for type_ in Type:
                self.assert_malformed(f"{0x40 | type_ << 4:x}{code:02x}1234", f"code {code}", type_, 0x1234)

    def test_codes_that_the_type_may_not_carry(self) -> None:
        """Section 4.3, table 1."""
        for data, type_, reason in (
            ("50001234", Type.NON, "NON with code 0.00"),
            ("60011234", Type.ACK, "ACK with code 0.01"),
            ("70011234", Type.RST, "RST with code 0.01"),
            ("70451234", Type.RST, "RST with code 2.05"),
        ):
            self.assert_malformed(data, reason, type_, 0x1234)

    def test_payload_marker_without_payload(self) -> None:
        """Section 3: the presence of a marker followed by a zero-length payload is a message format error."""
        self.assert_malformed("40011234ff", "payload marker", Type.CON, 0x1234)
        self.assert_malformed("60451234c0ff", "payload marker", Type.ACK, 0x1234)

    def test_reserved_delta_and_length(self) -> None:
        """Section 3.1: 15 is reserved for the payload marker, as a delta and as a length."""
        self.assert_malformed("40011234f0", "15", Type.CON, 0x1234)
        self.assert_malformed("400112340f", "15", Type.CON, 0x1234)
        self.assert_malformed("40011234fe0000", "15", Type.CON, 0x1234)

    def test_truncated_options(self) -> None:
        for data in ("d0", "0d", "e0", "e000", "0e", "0e00", "dd00", "ee000000"):
            self.assert_malformed("40011234" + data, "inside an option's header", Type.CON, 0x1234)
        for data in ("01", "b261", "0dff61"):
            number = int(data[0], 16)
            self.assert_malformed("40011234" + data, f"inside option {number}", Type.CON, 0x1234)

    def test_option_number_over_16_bits(self) -> None:
        self.assert_malformed("40011234" + "e0fef3", "option number 65536", Type.CON, 0x1234)
        self.assert_malformed("40011234" + "e0fef2" + "10", "option number 65536", Type.CON, 0x1234)

    def test_every_truncation_of_a_message(self) -> None:
        """Cut anywhere it is either malformed or a shorter message; never another error."""
        whole = Message(
            Type.CON, 2, 1, b"tok", Options.of((11, b"p" * 13), (256, b"t" * 300), (65000, b"")), b"body"
        ).encode()
        ends = [4 + 3, 4 + 3 + 15, len(whole) - 5 - 3, len(whole) - 5]
        for cut in range(len(whole)):
            if cut in ends or cut > len(whole) - 4:
                self.assertEqual(Message.decode(whole[:cut]).encode(), whole[:cut])
            else:
                self.assertRaises(MessageFormatError, Message.decode, whole[:cut])


class UnencodableTests(SynchronousTestCase):
    def test_messages(self) -> None:
        plain = Message(Type.CON, Code.GET, 1)
        for message in (
            evolve(plain, token=b"123456789"),
            evolve(plain, message_id=0x10000),
            evolve(plain, message_id=-1),
            evolve(plain, code=0x20),
            evolve(plain, code=256),
            evolve(plain, code=-1),
            evolve(plain, type=Type.ACK),
            evolve(plain, type=Type.RST),
            Message(Type.NON, Code.EMPTY, 1),
            Message(Type.RST, Code.CONTENT, 1),
            Message(Type.ACK, Code.EMPTY, 1, b"t"),
            Message(Type.ACK, Code.EMPTY, 1, payload=b"p"),
            Message(Type.ACK, Code.EMPTY, 1, options=Options.of((12, b""))),
        ):
            self.assertRaises(MessageError, message.encode)

    def test_options(self) -> None:
        for pair in ((65536, b""), (-1, b""), (11, b"x" * 65805)):
            self.assertRaises(OptionError, Message(Type.CON, 1, 1, options=Options.of(pair)).encode)


class RepresentationTests(SynchronousTestCase):
    def test_no_body_and_no_credentials(self) -> None:
        message = Message(Type.CON, 2, 7, b"\x01", Options.of((256, b"secret")), b"secret")
        self.assertNotIn("secret", repr(message))
        self.assertIn("code=0.02", repr(message))
        self.assertIn("token=01", repr(message))


class PropertyTests(SynchronousTestCase):
    @PROPERTY
    @given(messages())
    def test_decoding_undoes_encoding(self, message: Message) -> None:
        self.assertEqual(Message.decode(message.encode()), message)

    def check(self, data: bytes) -> None:
        """Any bytes are a message, of which they are the one encoding, or a `MessageFormatError`."""
        try:
            message = Message.decode(data)
        except MessageFormatError as error:
            readable = len(data) >= 4 and data[0] >> 6 == 1
            self.assertEqual(error.message_id, int.from_bytes(data[2:4], "big") if readable else None)
            self.assertEqual(error.type, Type(data[0] >> 4 & 3) if readable else None)
        else:
            self.assertEqual(message.encode(), data)

    @PROPERTY
    @given(st.binary(max_size=64))
    def test_any_bytes(self, data: bytes) -> None:
        self.check(data)

    @PROPERTY
    @given(st.sampled_from((b"\x40\x01", b"\x51\x02", b"\x60\x45", b"\x48\x84")), st.binary(max_size=64))
    def test_any_bytes_behind_a_good_start(self, start: bytes, rest: bytes) -> None:
        self.check(start + rest)

    @PROPERTY
    @given(messages(), st.data())
    def test_damaged_messages(self, message: Message, data: st.DataObject) -> None:
        damaged = bytearray(message.encode())
        for _ in range(data.draw(st.integers(1, 3))):
            position = data.draw(st.integers(0, len(damaged) - 1))
            damaged[position] = data.draw(st.integers(0, 255))
        self.check(bytes(damaged[: data.draw(st.integers(0, len(damaged)))]))
