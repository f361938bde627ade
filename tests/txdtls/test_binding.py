# SPDX-License-Identifier: AGPL-3.0-or-later
"""The private names of pyOpenSSL: all there, and a missing one is named."""

from __future__ import annotations

from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.txdtls import binding
from synapse_lb.txdtls.context import ClientVerification, make_client_context
from synapse_lb.txdtls.errors import BindingError


class BindingTests(SynchronousTestCase):
    """`check_binding` stands before everything."""

    def test_the_installed_one_has_everything(self) -> None:
        self.assertEqual(binding.missing_names(), [])
        binding.check_binding()

    def test_a_missing_name_is_named_with_the_versions(self) -> None:
        self.patch(binding, "_FUNCTIONS", (*binding._FUNCTIONS, "SSL_gone_away"))
        error = self.assertRaises(BindingError, binding.check_binding)
        self.assertIn("SSL_gone_away", str(error))
        self.assertIn("pyOpenSSL", str(error))
        self.assertRaises(BindingError, make_client_context, ClientVerification.none())

    def test_a_pyopenssl_without_its_library_is_an_error_and_no_crash(self) -> None:
        self.patch(binding, "_lib", None)
        self.assertIn("i2d_SSL_SESSION", str(self.assertRaises(BindingError, binding.check_binding)))

    def test_unknown_groups_and_algorithms(self) -> None:
        context = SSL.Context(SSL.DTLS_METHOD)
        if hasattr(binding._lib, "SSL_CTX_set1_curves_list"):
            self.assertRaises(BindingError, binding.set_groups, context, "no-such-curve")
        self.assertRaises(BindingError, binding.set_signature_algorithms, context, "no+such")

    def test_without_a_setter_for_groups_the_default_stays(self) -> None:
        class Older:
            """A binding that lacks it."""

        self.patch(binding, "_lib", Older())
        binding.set_groups(SSL.Context(SSL.DTLS_METHOD), "X25519")

    def test_bytes_that_are_no_session(self) -> None:
        connection = SSL.Connection(make_client_context(ClientVerification.none()).ssl_context, None)
        for junk in (b"", b"junk", bytes(1000), b"\x30\x82" + bytes(70000)):
            self.assertFalse(binding.import_session(connection, junk))
