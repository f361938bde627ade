# SPDX-License-Identifier: AGPL-3.0-or-later
"""Splitting, packing, renumbering and inspecting records (RFC 6347 4.1, 4.2)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.txdtls import records

RANDOM = bytes(range(32))


def record(content_type: int, body: bytes, *, epoch: int = 0, sequence: int = 0) -> bytes:
    header = bytes([content_type]) + b"\xfe\xfd" + epoch.to_bytes(2, "big") + sequence.to_bytes(6, "big")
    return header + len(body).to_bytes(2, "big") + body


def client_hello(
    *, cookie: bytes = b"", message_sequence: int = 0, sequence: int = 0, offset: int = 0, cut: int = 0
) -> bytes:
    body = b"\xfe\xfd" + RANDOM + b"\0" + bytes([len(cookie)]) + cookie + b"\x00\x02\xc0\x2b" + b"\x01\x00"
    fragment = body[offset : len(body) - cut]
    handshake = (
        b"\x01"
        + len(body).to_bytes(3, "big")
        + message_sequence.to_bytes(2, "big")
        + offset.to_bytes(3, "big")
        + len(fragment).to_bytes(3, "big")
        + fragment
    )
    return record(records.HANDSHAKE, handshake, sequence=sequence)


RECORDS = st.builds(
    record,
    st.sampled_from([20, 21, 22, 23]),
    st.binary(max_size=60),
    epoch=st.integers(0, 2),
    sequence=st.integers(0, 2**48 - 1),
)


class SplitAndPackTests(SynchronousTestCase):
    """Nothing is lost or reordered between OpenSSL and the network."""

    @given(st.lists(RECORDS), st.integers(80, 300), st.booleans())
    def test_pack_keeps_every_record_in_order_within_the_mtu(
        self, given_records: list[bytes], mtu: int, join: bool
    ) -> None:
        datagrams = records.pack_records(given_records, mtu, join_application=join)
        self.assertEqual(b"".join(datagrams), b"".join(given_records))
        for datagram in datagrams:
            inside = records.split_records(datagram)
            self.assertEqual(b"".join(inside), datagram)
            self.assertLessEqual(len(datagram), mtu)
            types = [one[0] for one in inside]
            self.assertNotIn(records.APPLICATION_DATA, types[:-1])
            if not join and types[-1] == records.APPLICATION_DATA:
                self.assertEqual(len(types), 1)

    def test_packs_a_flight_greedily(self) -> None:
        flight = [record(22, bytes(87)) for _ in range(5)]
        self.assertEqual(
            [len(d) for d in records.pack_records(flight, 250, join_application=False)], [200, 200, 100]
        )

    def test_a_rest_that_is_no_record_is_left_out(self) -> None:
        whole = record(23, b"abc")
        self.assertEqual(records.split_records(whole + whole[:-1]), [whole])

    def test_renumbering(self) -> None:
        self.assertEqual(records.renumber(record(22, b"x", sequence=1), 5), record(22, b"x", sequence=5))
        self.assertEqual(records.renumber(record(22, b"x"), 2**48 + 1), record(22, b"x", sequence=1))

    def test_handshake_messages_share_a_record_up_to_a_limit(self) -> None:
        first, second, third = (record(22, bytes([n]) * 30, sequence=n) for n in (1, 2, 3))
        whole = record(22, first[13:] + second[13:] + third[13:], sequence=1)
        self.assertEqual(records.merge_handshakes([first, second, third], 103), [whole])
        self.assertEqual(
            records.merge_handshakes([first, second, third], 102),
            [record(22, first[13:] + second[13:], sequence=1), third],
        )

    def test_nothing_else_shares_a_record(self) -> None:
        flight = [
            record(22, b"a" * 20),
            record(20, b"\1", sequence=1),
            record(22, b"b" * 20, epoch=1),
            record(22, b"c" * 20, epoch=1, sequence=1),
            record(21, b"dd", sequence=2),
        ]
        self.assertEqual(records.merge_handshakes(flight, 1200), flight)

    def test_several_messages_share_a_datagram_with_those_who_read_them(self) -> None:
        messages = [record(23, bytes(50), epoch=1, sequence=n) for n in range(4)]
        for several, sizes in ((False, [63, 63, 63, 63]), (True, [189, 63])):
            datagrams = records.pack_records(messages, 200, join_application=True, several=several)
            self.assertEqual([len(one) for one in datagrams], sizes)


class InspectTests(SynchronousTestCase):
    """What the headers tell."""

    def test_a_client_flight(self) -> None:
        flight = (
            record(22, b"\x10" + bytes(3) + b"\0\x02" + bytes(40))
            + record(20, b"\1")
            + record(22, bytes(40), epoch=1)
        )
        summary = records.inspect(flight)
        self.assertEqual(
            summary,
            records.Datagram(
                records=3,
                application=0,
                ends_with_application=False,
                encrypted=True,
                shortest_encrypted=40,
                message_sequence=2,
                client_hello=False,
                hello_verify_request=False,
                size=len(flight),
                wire=len(flight),
            ),
        )

    def test_application_records_are_counted_and_a_rest_is_not_taken(self) -> None:
        data = record(23, b"a", epoch=1) + record(23, b"b", epoch=1)
        summary = records.inspect(data + b"rest")
        assert summary is not None
        self.assertEqual((summary.records, summary.application, summary.size), (2, 2, len(data)))
        self.assertTrue(summary.ends_with_application)

    def test_what_is_no_dtls_is_refused(self) -> None:
        whole = record(23, b"abc")
        for data in (
            b"",
            b"GET / HTTP/1.1\r\n\r\n",
            whole[:-1],
            b"\x40\x01\0\1",
            b"\x16\x03\x01" + whole[3:],
            b"\x18" + whole[1:],
            b"\x13" + whole[1:],
            bytes(100),
        ):
            self.assertIsNone(records.inspect(data), data)

    @given(st.binary(max_size=200) | st.lists(RECORDS).map(b"".join))
    def test_never_raises_and_never_takes_more_than_there_is(self, data: bytes) -> None:
        summary = records.inspect(data)
        if summary is not None:
            self.assertLessEqual(summary.size, len(data))
            self.assertEqual(len(records.split_records(data[: summary.size])), summary.records)


class ShortRecordTests(SynchronousTestCase):
    """Encrypted records that are too short to be authentic."""

    def test_only_they_are_left_out(self) -> None:
        plain, short, enough = (
            record(20, b"x"),
            record(23, bytes(15), epoch=1),
            record(23, bytes(16), epoch=1),
        )
        self.assertEqual(records.without_short_records(plain + short + enough + short, 16), plain + enough)
        summary = records.inspect(plain + enough + short)
        assert summary is not None
        self.assertEqual(summary.shortest_encrypted, 15)


class ClientHelloTests(SynchronousTestCase):
    """Reading what the cookie is bound to."""

    def test_reads_the_parameters_without_the_cookie(self) -> None:
        first = records.parse_client_hello(client_hello(sequence=3))
        second = records.parse_client_hello(client_hello(cookie=b"cookie", message_sequence=1, sequence=4))
        assert first is not None and second is not None
        self.assertEqual((first.random, first.cookie, first.record_sequence), (RANDOM, b"", 3))
        self.assertEqual((second.random, second.cookie, second.record_sequence), (RANDOM, b"cookie", 4))
        self.assertEqual(first.parameters, second.parameters)

    def test_what_follows_in_the_datagram_is_left_out(self) -> None:
        hello = client_hello()
        parsed = records.parse_client_hello(hello + record(23, b"more"))
        assert parsed is not None
        self.assertEqual(parsed.record, hello)

    def test_fragments_are_refused(self) -> None:
        self.assertIsNone(records.parse_client_hello(client_hello(cut=10)))
        self.assertIsNone(records.parse_client_hello(client_hello(offset=10)))

    @given(st.integers(0, 60), st.binary(max_size=80))
    def test_never_raises_on_a_mangled_hello(self, keep: int, rest: bytes) -> None:
        parsed = records.parse_client_hello(client_hello()[:keep] + rest)
        if parsed is not None:
            self.assertEqual(len(parsed.random), 32)
