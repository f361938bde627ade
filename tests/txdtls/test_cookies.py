# SPDX-License-Identifier: AGPL-3.0-or-later
"""Cookies: bound to the address and the hello, and short-lived (RFC 6347 4.2.1)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.txdtls.cookies import COOKIE_SIZE, CookieJar

ADDRESS = ("192.0.2.1", 4000)


class CookieTests(SynchronousTestCase):
    """One secret for making, the one before for checking."""

    def setUp(self) -> None:
        self.jar = CookieJar(lifetime=100.0)
        self.jar.rotate(1000.0)
        self.cookie = self.jar.make(ADDRESS, b"hello")

    def good(self) -> bool:
        return self.jar.check(self.cookie, ADDRESS, b"hello")

    def test_accepts_its_own(self) -> None:
        self.assertEqual(len(self.cookie), COOKIE_SIZE)
        self.assertTrue(self.good())

    def test_refuses_other_addresses_ports_parameters_and_cookies(self) -> None:
        self.assertFalse(self.jar.check(self.cookie, ("192.0.2.2", 4000), b"hello"))
        self.assertFalse(self.jar.check(self.cookie, ("192.0.2.1", 4001), b"hello"))
        self.assertFalse(self.jar.check(self.cookie, ADDRESS, b"hullo"))
        self.assertFalse(self.jar.check(self.cookie[:-1], ADDRESS, b"hello"))
        self.assertFalse(self.jar.check(b"", ADDRESS, b"hello"))
        self.assertFalse(CookieJar().check(self.cookie, ADDRESS, b"hello"))

    def test_host_and_port_and_parameters_cannot_run_into_each_other(self) -> None:
        self.assertNotEqual(self.jar.make(("a", 1), b"bc"), self.jar.make(("ab", 1), b"c"))

    def test_survives_one_change_of_the_secret_but_not_two(self) -> None:
        self.jar.rotate(1099.0)
        self.assertTrue(self.good())
        self.jar.rotate(1100.0)
        self.assertNotEqual(self.jar.make(ADDRESS, b"hello"), self.cookie)
        self.assertTrue(self.good())
        self.jar.rotate(1200.0)
        self.assertFalse(self.good())

    def test_a_quiet_time_of_two_lifetimes_ends_all_cookies(self) -> None:
        self.jar.rotate(1200.0)
        self.assertFalse(self.good())
