# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an admin may set, and what each mistake is answered with."""

from __future__ import annotations

import os
from typing import Any

from synapse.config import server, workers
from synapse.module_api.errors import ConfigError
from twisted.trial.unittest import SynchronousTestCase

import synapse_lb
from synapse_lb.coap.tuning import Limits, Tuning
from synapse_lb.homeserver.config import (
    LowBandwidthListenerConfig,
    ModuleConfig,
    check_listeners,
    parse_listener,
    parse_module,
)
from synapse_lb.homeserver.module import LowBandwidthModule, versions_content
from synapse_lb.server.sync_observer import ObserveOptions
from synapse_lb.txdtls.options import ServerOptions

EXTENSIONS = {"observe", "q_block", "x1"}


def listener(**options: Any) -> LowBandwidthListenerConfig:
    """Parse a listener on port 8008 with further options."""
    return parse_listener(3, {"type": "lowbandwidth", "port": 8008, **options})


class ListenerTests(SynchronousTestCase):
    """Each option of the listener."""

    def test_defaults(self) -> None:
        config = listener()
        self.assertEqual(
            config,
            LowBandwidthListenerConfig(
                port=8008,
                bind_addresses=("::", "0.0.0.0"),
                tag="8008",
                advertised_port=8008,
                observe=True,
                x1=True,
                observe_options=ObserveOptions(),
                dtls=ServerOptions(),
                limits=Limits(),
                tuning=Tuning(q_block=True),
            ),
        )
        self.assertEqual((config.type, config.http_options, config.is_tls()), ("lowbandwidth", None, False))
        self.assertEqual(config.get_site_tag(), "8008")

    def test_port_of_other_processes(self) -> None:
        self.assertEqual(parse_module({"advertised_port": 8448}), ModuleConfig(advertised_port=8448))
        self.assertRaises(ConfigError, parse_module, {"advertised_port": 0})

    def test_addresses(self) -> None:
        self.assertEqual(listener(bind_addresses=["::1", "127.0.0.1"]).bind_addresses, ("::1", "127.0.0.1"))
        self.assertEqual(listener(bind_address="127.0.0.1").bind_addresses, ("127.0.0.1",))
        both = listener(bind_addresses=["::1"], bind_address="127.0.0.1")
        self.assertEqual(both.bind_addresses, ("::1", "127.0.0.1"))
        self.assertEqual(listener(bind_addresses=[]).bind_addresses, ("::", "0.0.0.0"))

    def test_paths_are_made_absolute(self) -> None:
        config = listener(tls_certificate_path="lb.crt", tls_private_key_path="/etc/lb.key")
        self.assertEqual(
            (config.certificate_path, config.key_path), (os.path.join(os.getcwd(), "lb.crt"), "/etc/lb.key")
        )

    def test_port_that_is_advertised(self) -> None:
        config = listener(advertised_port=443, tag="lb")
        self.assertEqual((config.port, config.advertised_port, config.tag), (8008, 443, "lb"))
        self.assertFalse(listener(advertise=False).advertise)

    def test_what_is_advertised(self) -> None:
        """Only what is served."""
        everything = versions_content(listener())
        self.assertEqual({name: everything[name] for name in EXTENSIONS}, dict.fromkeys(EXTENSIONS, 1))
        less = versions_content(listener(x1=False, observe=False, tuning={"q_block": False}))
        self.assertEqual(set(everything) - set(less), EXTENSIONS)

    def test_observing(self) -> None:
        config = listener(
            observe=False,
            limits={"max_observations_per_peer": 3, "max_observations_per_user": 5, "max_syncs_at_once": 9},
            tuning={"notification_processing": "5m"},
        )
        self.assertFalse(config.observe)
        self.assertEqual(config.limits, Limits(max_observations_per_peer=3))
        self.assertEqual(
            config.observe_options, ObserveOptions(max_observations_per_user=5, max_syncs_at_once=9)
        )
        self.assertEqual(config.tuning, Tuning(q_block=True, notification_processing=300.0))
        with self.assertRaises(ConfigError) as caught:
            listener(limits={"max_observations_per_user": 0})
        self.assertIn("max_observations_per_user", str(caught.exception.path))

    def test_dtls(self) -> None:
        config = listener(mtu=1000, idle_timeout="2h", limits={"max_associations": 7, "max_half_open": 3})
        self.assertEqual(
            config.dtls, ServerOptions(mtu=1000, idle_timeout=7200.0, max_associations=7, max_half_open=3)
        )

    def test_limits(self) -> None:
        config = listener(
            limits={
                "handshake_timeout": 20,
                "block_size": 256,
                "max_request_body": "512K",
                "max_reassemblies_per_peer": 2,
                "max_reassembly_bytes_per_peer": "1M",
                "max_reassembly_bytes_total": "8M",
                "reassembly_lifetime": "5m",
                "max_exchanges_per_peer": 10,
                "dedup_entries_per_peer": 20,
                "dedup_bytes_per_peer": 4096,
                "max_snapshots_per_peer": 3,
                "snapshot_bytes_per_peer": "2M",
                "snapshot_bytes_total": "16M",
                "snapshot_lifetime": 60.5,
            }
        )
        self.assertEqual(config.dtls, ServerOptions(handshake_timeout=20))
        self.assertEqual(
            config.limits,
            Limits(
                block_szx=4,
                max_request_body=512 * 1024,
                max_reassemblies_per_peer=2,
                max_reassembly_bytes_per_peer=1024 * 1024,
                max_reassembly_bytes_total=8 * 1024 * 1024,
                reassembly_lifetime=300.0,
                max_exchanges_per_peer=10,
                dedup_entries_per_peer=20,
                dedup_bytes_per_peer=4096,
                max_snapshots_per_peer=3,
                snapshot_bytes_per_peer=2 * 1024 * 1024,
                snapshot_bytes_total=16 * 1024 * 1024,
                snapshot_lifetime=60.5,
            ),
        )

    def test_tuning(self) -> None:
        options: dict[str, Any] = {
            "ack_timeout": 3,
            "ack_random_factor": 1.2,
            "max_retransmit": 6,
            "nstart": 2,
            "separate_after": 0.5,
            "adaptive_rto": False,
            "min_rto": 2,
            "max_rto": "30s",
            "q_block": False,
        }
        self.assertEqual(listener(tuning=options).tuning, Tuning(**{**options, "max_rto": 30.0}))

    def test_null_is_the_default(self) -> None:
        self.assertEqual(listener(mtu=None, limits=None, tuning=None, tag=None), listener())


class MistakeTests(SynchronousTestCase):
    """Each mistake stops Synapse with a text that names the place and the remedy."""

    def refused(self, where: str, text: str, **options: Any) -> None:
        with self.assertRaises(ConfigError) as caught:
            listener(**options)
        self.assertEqual(".".join(caught.exception.path or ()), where)
        self.assertIn(text, caught.exception.msg)

    def test_unknown_options(self) -> None:
        self.refused("listeners.3.resources", "unknown option 'resources'; known are: ", resources=[])
        self.refused("listeners.3.limits.max_bodies", "unknown option", limits={"max_bodies": 1})
        self.refused("listeners.3.tuning.rto", "unknown option", tuning={"rto": 1})

    def test_port(self) -> None:
        for value in (0, -1, 65536, "8008", 80.5, True, [8008]):
            self.refused("listeners.3.port", "must be an integer from 1 to 65535", port=value)
        self.refused("listeners.3.port", "is missing", port=None)
        self.refused("listeners.3.advertised_port", "must be an integer from 1 to 65535", advertised_port=0)

    def test_addresses(self) -> None:
        self.refused("listeners.3.bind_addresses", "'localhost' is no IP address", bind_address="localhost")
        self.refused(
            "listeners.3.bind_addresses", "is there twice", bind_addresses=["::1"], bind_address="::1"
        )
        self.refused("listeners.3.bind_addresses", "must be a list", bind_addresses="::1")
        self.refused("listeners.3.bind_addresses", "must be a text", bind_addresses=[1])

    def test_certificate_without_key(self) -> None:
        self.refused("listeners.3.tls_private_key_path", "is missing", tls_certificate_path="a")
        self.refused("listeners.3.tls_certificate_path", "is missing", tls_private_key_path="a")
        self.refused("listeners.3.tls_certificate_path", "must be a text", tls_certificate_path=1)

    def test_types_and_ranges(self) -> None:
        for options, where, text in (
            ({"mtu": 100}, "mtu", "256"),
            ({"mtu": "big"}, "mtu", "must be an integer"),
            ({"cookie": "never"}, "cookie", "auto"),
            ({"cookie": True}, "cookie", "must be a text"),
            ({"idle_timeout": 0}, "idle_timeout", "idle_timeout"),
            ({"idle_timeout": "soon"}, "idle_timeout", "must be a number of seconds"),
            ({"idle_timeout": float("nan")}, "idle_timeout", "must be a number of seconds"),
            ({"advertise": "yes"}, "advertise", "must be true or false"),
            ({"tag": ""}, "tag", "must be a text"),
            ({"limits": []}, "limits", "must be a mapping"),
            ({"limits": {"max_request_body": "1X"}}, "limits.max_request_body", "must be a number of bytes"),
            ({"limits": {"max_request_body": -1}}, "limits.max_request_body", "at least 0"),
            ({"limits": {"max_associations": 0}}, "limits.max_associations", "max_associations"),
            ({"limits": {"block_size": 1000}}, "limits.block_size", "must be one of 16, 32"),
            ({"limits": {1: 2}}, "limits", "must have texts as its keys"),
            (
                {"limits": {"max_request_body": "3M"}},
                "limits",
                "max_reassembly_bytes_per_peer must be at least",
            ),
            ({"tuning": {"ack_timeout": True}}, "tuning.ack_timeout", "must be a number of seconds"),
            ({"tuning": {"ack_random_factor": 0.5}}, "tuning.ack_random_factor", "at least 1"),
            ({"tuning": {"ack_random_factor": "x"}}, "tuning.ack_random_factor", "must be a number"),
            ({"tuning": {"min_rto": 10, "max_rto": 5}}, "tuning", "max_rto must be at least min_rto"),
        ):
            self.refused(f"listeners.3.{where}", text, **options)

    def test_two_listeners_on_one_socket(self) -> None:
        one, other = listener(bind_addresses=["127.0.0.1"]), listener(bind_addresses=["::1", "127.0.0.1"])
        with self.assertRaises(ConfigError) as caught:
            check_listeners([one, other])
        self.assertIn("port 8008 on 127.0.0.1", caught.exception.msg)
        check_listeners([one, listener(bind_addresses=["::1"])])


class SynapseTests(SynchronousTestCase):
    """Synapse's own parsing knows the type once the module is imported."""

    def test_both_kinds_of_listeners(self) -> None:
        self.assertIs(synapse_lb.LowBandwidthModule, LowBandwidthModule)
        for parse in (vars(server)["parse_listener_def"], vars(workers)["parse_listener_def"]):
            parsed = parse(0, {"type": "lowbandwidth", "port": 1234})
            self.assertIsInstance(parsed, LowBandwidthListenerConfig)
            self.assertEqual(parse(0, {"type": "http", "port": 1234}).type, "http")

    def test_other_mistakes_are_still_synapses(self) -> None:
        with self.assertRaises(ConfigError):
            server.parse_listener_def(0, "lowbandwidth")


class ModuleTests(SynchronousTestCase):
    """The module's own config."""

    def test_options(self) -> None:
        self.assertEqual(LowBandwidthModule.parse_config({}), ModuleConfig(metrics=True))
        self.assertEqual(LowBandwidthModule.parse_config({"metrics": False}), ModuleConfig(metrics=False))

    def test_mistakes(self) -> None:
        for content, text in (
            ({"metric": True}, "unknown option 'metric'; known are: advertised_port, metrics"),
            ({"metrics": 1}, "must be true or false"),
            (["metrics"], "must be a mapping"),
        ):
            with self.assertRaises(ConfigError) as caught:
                LowBandwidthModule.parse_config(content)  # type: ignore[arg-type]  # what an admin may write
            self.assertIn(text, caught.exception.msg)
