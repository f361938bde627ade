# SPDX-License-Identifier: AGPL-3.0-or-later
"""The messages of RFC 7252 appendix A, figures 16-23, byte for byte."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Code, OptionNumber, Type
from synapse_lb.coap.options import Options

TEMPERATURE = Options.of((OptionNumber.URI_PATH, b"temperature"))


def get(type_: Type, message_id: int, token: bytes = b"") -> Message:
    return Message(type_, Code.GET, message_id, token, TEMPERATURE)


def content(type_: Type, message_id: int, token: bytes = b"", payload: bytes = b"22.3 C") -> Message:
    return Message(type_, Code.CONTENT, message_id, token, payload=payload)


class AppendixATests(SynchronousTestCase):
    def assert_wire(self, *rows: tuple[Message, str]) -> None:
        for message, encoded in rows:
            data = bytes.fromhex(encoded)
            self.assertEqual(message.encode(), data)
            self.assertEqual(Message.decode(data), message)

    #    0                   1                   2                   3
    #    0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1 2 3 4 5 6 7 8 9 0 1
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   | 1 | 0 |   0   |     GET=1     |          MID=0x7d34           |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |  11   |  11   |      "temperature" (11 B) ...
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   | 1 | 2 |   0   |    2.05=69    |          MID=0x7d34           |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |1 1 1 1 1 1 1 1|      "22.3 C" (6 B) ...
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    def test_figure_16_piggybacked_response(self) -> None:
        self.assert_wire(
            (get(Type.CON, 0x7D34), "40017d34 bb 74656d7065726174757265"),
            (content(Type.ACK, 0x7D34), "60457d34 ff 32322e332043"),
        )
        self.assertEqual(len(get(Type.CON, 0x7D34).encode()), 16)
        self.assertEqual(len(content(Type.ACK, 0x7D34).encode()), 11)

    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   | 1 | 0 |   1   |     GET=1     |          MID=0x7d35           |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |     0x20      |
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    #   |  11   |  11   |      "temperature" (11 B) ...
    #   +-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+-+
    def test_figure_17_token(self) -> None:
        self.assert_wire(
            (get(Type.CON, 0x7D35, b"\x20"), "41017d35 20 bb 74656d7065726174757265"),
            (content(Type.ACK, 0x7D35, b"\x20"), "61457d35 20 ff 32322e332043"),
        )
        self.assertEqual(len(get(Type.CON, 0x7D35, b"\x20").encode()), 17)
        self.assertEqual(len(content(Type.ACK, 0x7D35, b"\x20").encode()), 12)

    def test_figures_18_and_19_retransmission(self) -> None:
        self.assert_wire(
            (get(Type.CON, 0x7D36, b"\x31"), "41017d36 31 bb 74656d7065726174757265"),
            (content(Type.ACK, 0x7D36, b"\x31"), "61457d36 31 ff 32322e332043"),
            (get(Type.CON, 0x7D37, b"\x42"), "41017d37 42 bb 74656d7065726174757265"),
            (content(Type.ACK, 0x7D37, b"\x42"), "61457d37 42 ff 32322e332043"),
        )

    def test_figure_20_separate_response(self) -> None:
        self.assert_wire(
            (get(Type.CON, 0x7D38, b"\x53"), "41017d38 53 bb 74656d7065726174757265"),
            (Message(Type.ACK, Code.EMPTY, 0x7D38), "60007d38"),
            (content(Type.CON, 0xAD7B, b"\x53"), "4145ad7b 53 ff 32322e332043"),
            (Message(Type.ACK, Code.EMPTY, 0xAD7B), "6000ad7b"),
        )

    def test_figure_21_unexpected_separate_response(self) -> None:
        self.assert_wire(
            (get(Type.CON, 0x7D39, b"\x64"), "41017d39 64 bb 74656d7065726174757265"),
            (Message(Type.ACK, Code.EMPTY, 0x7D39), "60007d39"),
            (content(Type.CON, 0xAD7C, b"\x64"), "4145ad7c 64 ff 32322e332043"),
            (Message(Type.RST, Code.EMPTY, 0xAD7C), "7000ad7c"),
        )

    def test_figure_22_non_confirmable(self) -> None:
        self.assert_wire(
            (get(Type.NON, 0x7D40, b"\x75"), "51017d40 75 bb 74656d7065726174757265"),
            (content(Type.NON, 0xAD7D, b"\x75"), "5145ad7d 75 ff 32322e332043"),
        )

    def test_figure_23_answers_to_a_multicast(self) -> None:
        self.assert_wire(
            (get(Type.NON, 0x7D41, b"\x86"), "51017d41 86 bb 74656d7065726174757265"),
            (content(Type.NON, 0x60B1, b"\x86"), "514560b1 86 ff 32322e332043"),
            (content(Type.NON, 0x01A0, b"\x86", b"20.9 C"), "514501a0 86 ff 32302e392043"),
            (Message(Type.NON, Code.NOT_FOUND, 0x952A, b"\x86"), "5184952a 86"),
        )
