# SPDX-License-Identifier: AGPL-3.0-or-later
"""Who is tried, in which order and how often: exact counts, with associations that only count (no DTLS)."""

from __future__ import annotations

import random
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.txdtls import records
from synapse_lb.txdtls.movement import (
    FEW,
    MAX_HELD,
    MAX_SOURCES,
    REACH,
    WIDE_REACH,
    Movement,
    Path,
    host_key,
    sequence_to_try,
)
from synapse_lb.txdtls.options import ServerCounters, ServerOptions
from synapse_lb.txdtls.table import Entry
from tests.txdtls.test_records import record


class Counting:
    """An association that says which records are its own, and counts how often it was asked."""

    def __init__(self, log: list[int], name: int, newest: int) -> None:
        self.newest = newest
        self._log = log
        self._name = name

    def opens(self, data: bytes) -> bool:
        self._log.append(self._name)
        return data[records.HEADER_SIZE :] == b"of %d" % self._name


def datagram(sequence: int, name: int = -1) -> bytes:
    """An application record of an association."""
    return record(records.APPLICATION_DATA, b"of %d" % name, epoch=1, sequence=sequence)


class MovementTestCase(SynchronousTestCase):
    """An index with associations on it."""

    def setUp(self) -> None:
        self.tried: list[int] = []
        self.entries: list[Entry] = []
        self.make()

    def make(self, **options: Any) -> None:
        """Begin with an empty index."""
        self.counters = ServerCounters()
        self.options = ServerOptions(**options)
        self.movement = Movement(self.options, self.counters)
        self.entries.clear()

    def add(self, host: str, newest: int) -> Entry:
        name = len(self.entries)
        association: Any = Counting(self.tried, name, newest)
        entry = Entry(name, association, (host, 1000 + name), b"", 0.0)
        self.entries.append(entry)
        self.movement.add(entry)
        return entry

    def find(self, data: bytes, host: str, now: float = 0.0, but: Entry | None = None) -> int | None:
        """The name of what is found; `self.tried` has those that were tried for it."""
        self.tried.clear()
        entry = self.movement.find(data, host, now, but=but)
        return None if entry is None else entry.id


class OrderTests(MovementTestCase):
    """Who is likely."""

    def test_the_same_host_first_then_the_closest_number(self) -> None:
        for host, newest in (
            ("192.0.2.1", 9),
            ("192.0.2.2", 3),
            ("192.0.2.1", 5),
            ("192.0.2.3", 8),
            ("192.0.2.1", 10),
            ("192.0.2.4", 2),
            ("192.0.2.4", 11),
        ):
            self.add(host, newest)
        self.assertIsNone(self.find(datagram(10), "192.0.2.1"))
        self.assertEqual(self.tried, [0, 2, 3, 1, 5])
        self.assertEqual(self.find(datagram(10, 3), "192.0.2.1"), 3)
        self.assertEqual(self.tried, [0, 2, 3])
        self.assertEqual(self.counters.move_trials, 8)

    def test_only_records_above_the_newest(self) -> None:
        self.add("192.0.2.1", 7)
        for number in (0, 6, 7):
            self.assertIsNone(self.find(datagram(number, 0), "192.0.2.1"))
            self.assertEqual(self.tried, [])
        self.assertEqual(self.find(datagram(8, 0), "192.0.2.1"), 0)

    def test_the_index_follows_the_newest_number_and_the_address(self) -> None:
        entry = self.add("192.0.2.1", 0)
        association: Any = entry.association
        association.newest = 7
        self.movement.note(entry)
        self.assertIsNone(self.find(datagram(7, 0), "192.0.2.9"))
        self.assertEqual(self.find(datagram(8, 0), "192.0.2.9"), 0)
        self.add("192.0.2.2", 7)
        entry.address = "192.0.2.2", 5
        self.movement.add(entry)
        self.find(datagram(8), "192.0.2.2")
        self.assertEqual(self.tried, [1, 0])
        self.movement.remove(entry)
        self.movement.remove(entry)
        self.movement.note(entry)
        self.find(datagram(8), "192.0.2.2")
        self.assertEqual(self.tried, [1])
        self.movement.remove(self.entries[1])
        self.assertEqual(len(self.movement), 0)
        self.assertIsNone(self.find(datagram(8), "192.0.2.2"))

    def test_who_was_tried_in_vain_goes_behind_its_equals(self) -> None:
        self.make(move_trials_per_datagram=2)
        for number in range(5):
            self.add(f"192.0.2.{number}", 3)
        order = []
        for _ in range(5):
            self.find(datagram(4), "198.51.100.1")
            order += self.tried
        self.assertEqual(order, [0, 1, 2, 3, 4, 0, 1, 2, 3, 4])

    def test_one_that_is_out_of_the_question(self) -> None:
        entry = self.add("192.0.2.1", 3)
        self.add("192.0.2.1", 2)
        self.find(datagram(4), "192.0.2.1", but=entry)
        self.assertEqual(self.tried, [1])

    def test_far_numbers(self) -> None:
        for number in range(FEW):
            self.add("192.0.2.1", number)
        self.find(datagram(FEW + WIDE_REACH), "192.0.2.1")
        self.assertEqual(self.tried, [], "nobody is within the wide reach")
        self.find(datagram(FEW + WIDE_REACH - 3), "192.0.2.1")
        self.assertEqual(self.tried, [127, 126, 125])
        self.add("192.0.2.1", FEW)
        self.find(datagram(FEW + REACH + 1), "192.0.2.1")
        self.assertEqual(self.tried, [], "now there are many numbers, and the reach is short")
        self.find(datagram(FEW + REACH), "192.0.2.1", now=1.0)
        self.assertEqual(self.tried, [FEW])

    def test_hosts(self) -> None:
        self.assertEqual(host_key("2001:db8::1"), host_key("2001:db8:0:0:ffff::9"))
        self.assertNotEqual(host_key("2001:db8::1"), host_key("2001:db8:0:1::1"))
        self.assertEqual(host_key("::ffff:192.0.2.1"), host_key("192.0.2.1"))
        self.assertNotEqual(host_key("::ffff:192.0.2.1"), host_key("::ffff:192.0.2.2"))
        self.assertEqual(host_key("fe80::1%eth0"), host_key("fe80::2%eth0"))
        self.assertEqual(host_key("a-name"), b"a-name")

    def test_which_datagrams_are_looked_at(self) -> None:
        for content_type, epoch, wanted in (
            (records.APPLICATION_DATA, 1, 77),
            (records.ALERT, 1, 77),
            (records.APPLICATION_DATA, 0, None),
            (records.APPLICATION_DATA, 2, None),
            (records.HANDSHAKE, 1, None),
            (records.CHANGE_CIPHER_SPEC, 1, None),
        ):
            data = record(content_type, bytes(40), epoch=epoch, sequence=77)
            self.assertEqual(sequence_to_try(data), wanted)


class BudgetTests(MovementTestCase):
    """The number of trials, whatever comes."""

    def crowd(self, size: int, hosts: int) -> None:
        """Associations whose numbers are as an attacker would like them: all close together."""
        for number in range(size):
            self.add(f"10.0.{number % hosts // 256}.{number % hosts % 256}", number % 20)

    def test_a_flood_of_junk_at_ten_thousand_associations(self) -> None:
        """One second of junk from made-up addresses: half of the second's budget; the next second as well."""
        self.crowd(10_000, 5000)
        shuffled = random.Random(1)
        for second in range(3):
            before = self.counters.move_trials
            for number in range(20_000):
                host = f"198.{shuffled.randrange(18, 20)}.{number % 256}.{number // 256 % 256}"
                self.find(datagram(21 + number % 3), host, now=second)
            self.assertEqual(self.counters.move_trials - before, self.options.move_trials_per_second // 2)
        searched = 3 * self.options.move_trials_per_second // 2 // self.options.move_trials_per_datagram
        self.assertEqual(self.counters.moves_refused, 60_000 - searched)

    def test_the_half_for_the_same_host_is_kept(self) -> None:
        self.crowd(10_000, 5000)
        for number in range(10_000):
            self.find(datagram(21), f"198.18.{number // 256}.{number % 256}")
        mine = self.entries[1234]
        self.assertEqual(self.find(datagram(21, 1234), mine.address[0]), 1234)
        self.assertIsNone(self.find(datagram(21, 1234), "192.0.2.1"), "there is nothing left for others")

    def test_a_host_with_associations_has_no_more_of_the_other_half(self) -> None:
        """Its own are tried from what is kept for that, the others only from the rest; it is counted."""
        self.make(move_trials_per_second=20)
        self.add("10.0.0.1", 20)
        for number in range(30):
            self.add(f"10.0.1.{number}", 20)
        for tried, refused in ((11, 1), (1, 2), (1, 3)):
            self.find(datagram(21), "10.0.0.1")
            self.assertEqual((len(self.tried), self.counters.moves_refused), (tried, refused))

    def test_even_a_flood_from_hosts_with_associations_has_an_end(self) -> None:
        self.crowd(10_000, 200)
        for number in range(50_000):
            self.find(datagram(21), f"10.0.0.{number % 200}")
        total = self.options.move_trials_per_second
        self.assertLessEqual(self.counters.move_trials, total)
        self.assertGreater(self.counters.move_trials, total - self.options.move_trials_per_datagram)

    def test_one_source(self) -> None:
        self.crowd(1000, 1000)
        for _ in range(100):
            self.find(datagram(21), "192.0.2.1")
        self.assertEqual(self.counters.move_trials, self.options.move_trials_per_source)
        self.assertEqual(self.counters.moves_refused, 96)
        self.find(datagram(21), "192.0.2.2")
        self.assertEqual(len(self.tried), self.options.move_trials_per_datagram, "others have their own")
        self.find(datagram(21), "192.0.2.1", now=0.125)
        self.assertEqual(len(self.tried), self.options.move_trials_per_source // 8)
        for count, now in ((64, 1.125), (0, 1.125)):
            for _ in range(4):
                self.find(datagram(21), "192.0.2.1", now=now)
                self.assertEqual(len(self.tried), count)

    def test_one_source_of_ipv6_is_a_whole_prefix(self) -> None:
        self.crowd(1000, 1000)
        for number in range(100):
            self.find(datagram(21), f"2001:db8::{number:x}")
        self.assertEqual(self.counters.move_trials, self.options.move_trials_per_source)

    def test_to_look_costs_a_trial_even_if_there_is_nobody_to_try(self) -> None:
        self.crowd(10, 10)
        for _ in range(1000):
            self.find(datagram(0), "192.0.2.1")
        self.assertEqual(self.counters.move_trials, 0)
        self.assertEqual(self.counters.moves_refused, 1000 - self.options.move_trials_per_source)

    def test_the_memory_of_sources_is_bounded(self) -> None:
        self.crowd(10, 10)
        for number in range(MAX_SOURCES + 50):
            self.find(datagram(0), f"198.18.{number // 256}.{number % 256}", now=number)
            if number in (10, 500):
                self.find(datagram(0), "192.0.2.9", now=number)
        self.assertEqual(len(self.movement._sources), MAX_SOURCES)
        self.assertNotIn(host_key("198.18.0.50"), self.movement._sources)
        self.assertIn(host_key("198.18.0.51"), self.movement._sources)
        self.assertIn(host_key("192.0.2.9"), self.movement._sources, "it was heard of since")

    def test_switched_off(self) -> None:
        self.make(move_trials_per_datagram=0)
        self.add("192.0.2.1", 3)
        self.assertIsNone(self.find(datagram(4, 0), "192.0.2.1"))
        self.assertEqual((self.tried, len(self.movement), self.counters.moves_refused), ([], 0, 0))

    def test_options_are_checked(self) -> None:
        for name, value in (
            ("move_trials_per_datagram", -1),
            ("move_trials_per_source", 0),
            ("move_trials_per_second", 0),
        ):
            wrong: dict[str, Any] = {name: value}
            self.assertIn(name, str(self.assertRaises(ValueError, ServerOptions, **wrong)))


class PathTests(SynchronousTestCase):
    """What may be sent to an address that is not proven."""

    def test_three_times_what_came(self) -> None:
        path = Path(("192.0.2.1", 1))
        self.assertTrue(path.admit(bytes(100_000)))
        self.assertEqual(path.moved(("192.0.2.2", 1)), [])
        self.assertEqual(path.received(100), [])
        # 3 * (100 + 28) bytes, of which the first takes 299 + 28, the third 1 + 28
        self.assertTrue(path.admit(bytes(299)))
        self.assertFalse(path.admit(bytes(30)))
        self.assertTrue(path.admit(b"c"))
        self.assertFalse(path.admit(b"d"))
        self.assertEqual(path.credit, 28)
        self.assertEqual(path.received(1), [bytes(30), b"d"])
        self.assertEqual(path.credit, 28 + 3 * 29 - 58 - 29)
        self.assertEqual(path.prove(("192.0.2.2", 1)), [])
        self.assertTrue(path.admit(bytes(100_000)))
        self.assertEqual(path.received(1), [])

    def test_headers_are_counted(self) -> None:
        for host, size in (("192.0.2.2", 28), ("::ffff:192.0.2.2", 28), ("2001:db8::2", 48)):
            moved = Path(("192.0.2.1", 1))
            moved.moved((host, 1))
            moved.received(10)
            for path in (Path.unproven((host, 1), 10), moved):
                self.assertEqual(path.credit, 3 * (10 + size))
                self.assertTrue(path.admit(b"x"))
                self.assertEqual(path.credit, 3 * (10 + size) - size - 1)

    def test_what_is_held_is_bounded_and_leaves_with_the_proof(self) -> None:
        path = Path(("192.0.2.1", 1))
        path.moved(("192.0.2.2", 1))
        for number in range(MAX_HELD + 5):
            self.assertFalse(path.admit(bytes([number])))
        self.assertEqual(path.moved(("192.0.2.3", 1)), [], "it goes along")
        self.assertEqual(path.prove(("192.0.2.3", 1)), [bytes([number]) for number in range(MAX_HELD)])

    def test_credit_does_not_go_along(self) -> None:
        path = Path(("192.0.2.1", 1))
        path.moved(("192.0.2.2", 1))
        path.received(1000)
        path.moved(("192.0.2.3", 1))
        self.assertFalse(path.admit(b"x"))

    def test_only_the_last_proven_address_needs_no_second_proof(self) -> None:
        path = Path(("192.0.2.1", 1))
        path.moved(("192.0.2.2", 1))
        path.prove(("192.0.2.2", 1))
        path.moved(("192.0.2.1", 1))
        self.assertFalse(path.admit(b"x"))
        self.assertEqual(path.moved(("192.0.2.2", 1)), [b"x"])
        self.assertTrue(path.admit(bytes(5000)))

    def test_nothing_is_held_during_a_handshake(self) -> None:
        """The flight is sent again when the client asks for it, and not twice."""
        path = Path.unproven(("192.0.2.1", 1), 100)
        self.assertFalse(path.admit(bytes(1000)))
        self.assertEqual(path.received(1000), [])
        self.assertEqual(path.prove(("192.0.2.1", 1)), [])
        path.moved(("192.0.2.2", 1))
        self.assertFalse(path.admit(b"x"))
        self.assertEqual(path.held, [b"x"])

    def test_back_at_the_proven_address(self) -> None:
        path = Path(("192.0.2.1", 1))
        path.moved(("192.0.2.2", 1))
        path.admit(b"held")
        self.assertEqual(path.moved(("192.0.2.1", 1)), [b"held"])
        self.assertTrue(path.admit(bytes(5000)))
