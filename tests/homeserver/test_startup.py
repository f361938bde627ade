# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real Synapse with a wrong setting: it ends with status 1 and says what to mend, without a traceback."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.testing.throwaway import HomeserverFailed, Ports, ThrowawayHomeserver, free_ports
from synapse_lb.txdtls.certificates import generate_self_signed


class StartUpTests(SynchronousTestCase):
    """Each start of Synapse here must fail."""

    def refused(self, **options: Any) -> str:
        """Start a homeserver with these options, which must fail; returns what it printed."""
        homeserver = ThrowawayHomeserver(**options)
        try:
            with self.assertRaises(HomeserverFailed) as caught:
                homeserver.start()
            self.assertEqual(caught.exception.exit_status, 1, str(caught.exception))
            output = homeserver.output_text()
            self.assertNotIn("Traceback", output)
            log = homeserver.log_text()
            self.assertNotIn("Traceback", log)
            errors = [line for line in log.splitlines() if " - CRITICAL - " in line]
            # Before Synapse has set up its log, there is what it prints.
            self.assertLessEqual(len(errors), 1)
            if errors:
                self.assertIn(" ".join(output.split()[-3:]), errors[0])
            return output
        finally:
            homeserver.stop()

    def test_unknown_option(self) -> None:
        output = self.refused(lowbandwidth_options={"tls": True})
        self.assertIn("Error in configuration at 'listeners.2.tls':\n  unknown option 'tls'", output)

    def test_unknown_option_of_the_module(self) -> None:
        output = self.refused(module_config={"observe": True})
        self.assertIn("Error in configuration at 'modules.<item 0>.config.observe'", output)
        self.assertIn("unknown option 'observe'; known are: advertised_port, metrics", output)

    def test_port_in_use(self) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
            taken.bind(("127.0.0.1", 0))
            number = taken.getsockname()[1]
            free = free_ports()
            output = self.refused(ports=Ports(http=free.http, https=free.https, lowbandwidth=number))
        self.assertIn(
            f"cannot listen on UDP port {number} of 127.0.0.1: Address already in use; stop what", output
        )

    def test_unreadable_key(self) -> None:
        missing = str(Path(self.mktemp()).absolute())
        output = self.refused(
            lowbandwidth_options={"tls_certificate_path": missing, "tls_private_key_path": missing}
        )
        self.assertIn(f"cannot read the certificate {missing}: No such file or directory", output)

    def test_key_that_does_not_match(self) -> None:
        paths = []
        for part in (0, 1):
            path = Path(self.mktemp()).absolute()
            path.write_bytes(generate_self_signed(["localhost"])[part])
            paths.append(str(path))
        output = self.refused(
            lowbandwidth_options={"tls_certificate_path": paths[0], "tls_private_key_path": paths[1]}
        )
        self.assertIn(f"the private key in {paths[1]} does not belong", output)

    def test_two_listeners_on_one_port(self) -> None:
        same = {"type": "lowbandwidth", "port": 18008, "bind_addresses": ["127.0.0.1"]}
        output = self.refused(extra_config={"listeners": [same, same]})
        self.assertIn("two listeners of type lowbandwidth use port 18008 on 127.0.0.1; remove one", output)

    def test_the_module_twice(self) -> None:
        module = {"module": "synapse_lb.LowBandwidthModule", "config": {}}
        output = self.refused(extra_config={"modules": [module, module]})
        self.assertIn("synapse_lb.LowBandwidthModule is there twice; remove one", output)
