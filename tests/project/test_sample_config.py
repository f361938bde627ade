# SPDX-License-Identifier: AGPL-3.0-or-later
"""sample_config.yaml says all that can be set, and the defaults that it states are those of the code."""

from __future__ import annotations

import re
from typing import Any

import yaml
from synapse.module_api.errors import ConfigError
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.homeserver.config import LISTENER_TYPE, parse_listener, parse_module
from tests.project.sources import ROOT

MINIMAL = {"type": LISTENER_TYPE, "port": 8008}


def sample(*, with_defaults: bool) -> Any:
    """The sample as Synapse would read it.

    Args:
        with_defaults: whether to take the options that are commented out for real: ``#name: value``, where a
            comment for people has a space behind its ``#``.
    """
    text = (ROOT / "sample_config.yaml").read_text()
    if with_defaults:
        text = re.sub(r"^( +)#(?=[a-z0-9_]+:)", r"\1", text, flags=re.MULTILINE)
    return yaml.safe_load(text)


def known_options(error: ConfigError) -> set[str]:
    """The names that an error about an unknown option gives."""
    _, _, names = error.msg.partition("known are: ")
    return set(names.split(", "))


class SampleConfigTests(SynchronousTestCase):
    """The sample against the parser."""

    def refused(self, content: dict[str, Any]) -> set[str]:
        """What the listener's parser says that there is, beside what it does not know."""
        return known_options(self.assertRaises(ConfigError, parse_listener, 0, content))

    def test_as_it_is(self) -> None:
        """The file as it is can be used, and is what comes of the options that are needed alone."""
        read = sample(with_defaults=False)
        (listener,) = read["listeners"]
        needed = {key: value for key, value in listener.items() if value is not None}
        self.assertEqual(needed, MINIMAL)
        self.assertEqual(parse_listener(0, listener), parse_listener(0, MINIMAL))
        (module,) = read["modules"]
        self.assertEqual(module["module"], "synapse_lb.LowBandwidthModule")
        self.assertEqual(parse_module(module["config"]), parse_module({}))

    def test_stated_defaults(self) -> None:
        """With every option set to what the sample calls its default, nothing changes."""
        read = sample(with_defaults=True)
        self.assertEqual(parse_listener(0, read["listeners"][0]), parse_listener(0, MINIMAL))
        self.assertEqual(parse_module(read["modules"][0]["config"]), parse_module({}))

    def test_every_option(self) -> None:
        """The options of the sample are those that the parser knows, no more and no fewer."""
        listener = sample(with_defaults=True)["listeners"][0]
        self.assertEqual(set(listener), self.refused({**MINIMAL, "zzz": 1}))
        for part in ("dispatch", "limits", "tuning"):
            self.assertEqual(set(listener[part]), self.refused({**MINIMAL, part: {"zzz": 1}}), part)

    def test_every_option_of_the_module(self) -> None:
        """The same for the module's own."""
        config = sample(with_defaults=True)["modules"][0]["config"]
        error = self.assertRaises(ConfigError, parse_module, {"zzz": 1})
        self.assertEqual(set(config), known_options(error))
