# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a request carries of the sticky options, and what it may leave out."""

from __future__ import annotations

import itertools
import random

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.sticky import Carried, StickySender


class KeyVersionTests(SynchronousTestCase):
    def test_carried_until_an_answer_came(self) -> None:
        sender = StickySender(1)
        first, second = sender.prepare(None), sender.prepare(None)
        self.assertEqual((first.key_version, second.key_version), (1, 1))
        sender.answered(first)
        self.assertIsNone(sender.prepare(None).key_version)

    def test_a_lost_request_says_nothing(self) -> None:
        sender = StickySender(1)
        sender.abandoned(sender.prepare(None))
        self.assertEqual(sender.prepare(None).key_version, 1)

    def test_none_is_never_carried(self) -> None:
        self.assertIsNone(StickySender(None).prepare("a").key_version)


class TokenTests(SynchronousTestCase):
    def test_carried_until_an_answer_came(self) -> None:
        sender = StickySender(None)
        first, second = sender.prepare("a"), sender.prepare("a")
        self.assertEqual([first.token, second.token], ["a", "a"])
        sender.answered(first)
        self.assertEqual(sender.prepare("a"), Carried(relies=True))

    def test_no_token_carries_none_and_changes_nothing(self) -> None:
        sender = StickySender(None)
        sender.answered(sender.prepare("a"))
        self.assertEqual(sender.prepare(None), Carried())
        self.assertTrue(sender.prepare("a").relies)

    def test_a_new_token_is_carried_and_replaces_the_old(self) -> None:
        sender = StickySender(None)
        sender.answered(sender.prepare("a"))
        self.assertTrue(sender.can_take("b"))
        new = sender.prepare("b")
        self.assertEqual(new.token, "b")
        sender.answered(new)
        self.assertTrue(sender.prepare("b").relies)

    def test_unauthorized_forgets(self) -> None:
        sender = StickySender(None)
        sender.answered(sender.prepare("a"))
        relying = sender.prepare("a")
        sender.answered(relying, unauthorized=True)
        self.assertEqual(sender.prepare("a").token, "a")

    def test_unauthorized_first_answer_confirms_nothing(self) -> None:
        sender = StickySender(None)
        sender.answered(sender.prepare("a"), unauthorized=True)
        self.assertEqual(sender.prepare("a").token, "a")

    def test_no_second_token_while_a_request_relies_on_the_first(self) -> None:
        sender = StickySender(None)
        sender.answered(sender.prepare("a"))
        relying = sender.prepare("a")
        self.assertFalse(sender.can_take("b"))
        self.assertTrue(sender.can_take("a"))
        self.assertTrue(sender.can_take(None))
        sender.answered(relying)
        self.assertTrue(sender.can_take("b"))

    def test_no_second_token_after_a_relying_request_was_given_up(self) -> None:
        sender = StickySender(None)
        sender.answered(sender.prepare("a"))
        sender.abandoned(sender.prepare("a"))
        self.assertFalse(sender.can_take("b"))

    def test_a_request_that_was_not_sent_changes_nothing(self) -> None:
        sender = StickySender(None)
        sender.unsent(sender.prepare("a"))
        sender.answered(sender.prepare("b"))
        sender.unsent(sender.prepare("b"))
        self.assertTrue(sender.can_take("a"))
        self.assertTrue(sender.prepare("b").relies)

    def test_tokens_that_may_overtake_each_other_are_always_carried(self) -> None:
        sender = StickySender(None)
        first, second = sender.prepare("a"), sender.prepare("b")
        sender.answered(second)
        sender.answered(first)
        self.assertEqual([sender.prepare(token).token for token in "aabb"], list("aabb"))

    def test_a_notification_shows_that_the_server_knows(self) -> None:
        """The request is still under way: its options come again with each block of a notification."""
        sender = StickySender(1)
        observing = sender.prepare("a")
        sender.notified(observing)
        self.assertEqual(sender.prepare("a"), Carried(relies=True))

    def test_other_tokens_are_always_carried_while_one_that_carries_observes(self) -> None:
        sender = StickySender(None)
        observing = sender.prepare("a")
        sender.notified(observing)
        for token in ("b", "b", "a"):
            carried = sender.prepare(token)
            self.assertEqual(carried.token, token)
            sender.answered(carried)

    def test_no_second_token_while_one_that_relies_observes(self) -> None:
        sender = StickySender(None)
        sender.answered(sender.prepare("a"))
        observing = sender.prepare("a")
        sender.notified(observing)
        self.assertFalse(sender.can_take("b"))
        sender.answered(observing)
        self.assertTrue(sender.can_take("b"))

    def test_a_token_given_up_may_still_arrive(self) -> None:
        sender = StickySender(None)
        sender.abandoned(sender.prepare("a"))
        sender.answered(sender.prepare("b"))
        self.assertEqual(sender.prepare("b").token, "b")

    def test_always(self) -> None:
        sender = StickySender(None, always=True)
        for token in ("a", "a", "b", "a"):
            self.assertTrue(sender.can_take(token))
            carried = sender.prepare(token)
            self.assertEqual(carried.token, token)
            sender.answered(carried)

    def test_token_is_not_shown(self) -> None:
        self.assertNotIn("secret", repr(StickySender(None).prepare("secret")))


class ReorderingTests(SynchronousTestCase):
    """Whatever the network does, no request is run as another user's."""

    def test_every_request_runs_as_its_own_user(self) -> None:
        relied = 0
        for seed in range(300):
            relied += self._run_once(random.Random(seed))
        self.assertGreater(relied, 1000, "the option was hardly ever left out, so nothing was tried")

    def _run_once(self, rng: random.Random) -> int:
        sender = StickySender(None)
        in_flight: list[tuple[str, Carried]] = []
        lost: list[tuple[str, Carried]] = []
        server_token: str | None = None
        relied = 0
        users = "ab" if rng.random() < 0.5 else "aaaaaaab"
        for _ in itertools.repeat(None, 60):
            action = rng.random()
            user = rng.choice(users)
            if action < 0.4 and sender.can_take(user):
                carried = sender.prepare(user)
                relied += carried.relies
                in_flight.append((user, carried))
            elif action < 0.45 and in_flight:
                given_up = in_flight.pop(rng.randrange(len(in_flight)))
                sender.abandoned(given_up[1])
                lost.append(given_up)
            elif in_flight or lost:
                # Any message may arrive next, also one that the client has given up.
                pile = rng.choice([pile for pile in (in_flight, lost) if pile])
                user, carried = pile.pop(rng.randrange(len(pile)))
                server_token = carried.token or server_token
                self.assertEqual(server_token, user)
                if pile is in_flight:
                    sender.answered(carried)
        return relied
