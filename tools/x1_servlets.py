# SPDX-License-Identifier: AGPL-3.0-or-later
"""Lists what the installed Synapse serves under /_matrix/client and x1's path table does not have.

    python -m tools.x1_servlets [--all]

Builds a homeserver in a temporary folder (nothing listens), asks its client resource which patterns are registered,
writes each as a path template, and prints those without a code; with `--all` also those that have one, with it. What
has no code is sent as it is.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from synapse.app.homeserver import SynapseHomeServer
from synapse.config.homeserver import HomeServerConfig
from synapse.rest import ClientRestResource
from synapse.server import HomeServer
from twisted.internet import reactor

from synapse_lb.msc3079.x1.paths import PATHS
from synapse_lb.testing import throwaway_config

PARAMETER: Final = re.compile(r"\(\?P<(\w+)>(?:[^()]|\([^()]*\))*\)")
DEPRECATED: Final = re.compile(
    r"/_matrix/client/(?:api/v1|unstable/(?!org\.|io\.|uk\.|com\.|fi\.|im\.)|r0)|/_synapse/"
)
"""Other ways to say what v3 or v1 says (x1 has r0 in the place of v3, too), and the admin API, which is not served."""


def templates(pattern: str) -> Iterator[str]:
    """The path templates of a servlet's pattern: one for each version that it lists."""
    text = PARAMETER.sub(lambda match: "{" + match[1] + "}", pattern.lstrip("^"))
    text = re.sub(r"\(\?:?/\)\?|/\?$|/\?\$|\$$|/\*$", "", text).replace("\\.", ".").replace("\\", "")
    optional = re.search(r"(/\{\w+\})\?", text)
    if optional is not None:
        yield from templates(text[: optional.start()] + text[optional.end() :])
        yield from templates(text.replace(optional[0], optional[1], 1))
        return
    versions = re.search(r"\(([^()]*)\)", text)
    if versions is None:
        yield text
        return
    for version in versions[1].removeprefix("?:").split("|"):
        yield from templates(text[: versions.start()] + version + text[versions.end() :])


def shape(path: str) -> str:
    """A template without the names of its parameters."""
    return re.sub(r"\{\w+\}", "{}", path)


def registered() -> list[tuple[str, str]]:
    """Method and pattern of each client servlet of the installed Synapse."""
    settings = throwaway_config.Settings(
        lowbandwidth=False,
        lowbandwidth_options={},
        module_config={},
        rate_limits=False,
        presence=True,
        log_level="ERROR",
        address="127.0.0.1",
        https=False,
        http_resources=["client"],
        compress=False,
        certificate=None,
        extra_config={"experimental_features": {"msc4140_enabled": True, "msc4306_enabled": True}},
    )
    with tempfile.TemporaryDirectory() as folder:
        throwaway_config.write(Path(folder), settings, http=1, https=1, lowbandwidth=1)
        arguments = ["--config-path", str(Path(folder) / throwaway_config.CONFIG)]
        config = HomeServerConfig.load_config("", arguments)
        homeserver: HomeServer = SynapseHomeServer(config.server.server_name, config=config, reactor=reactor)
        homeserver.setup()
        resource = ClientRestResource(homeserver)
        return [
            (method.decode(), pattern.pattern)
            for pattern, methods in resource._routes.items()
            for method in methods
        ]


def main(arguments: Sequence[str]) -> int:
    """Run what the arguments say; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="tools.x1_servlets")
    parser.add_argument("--all", action="store_true")
    options = parser.parse_args(arguments)
    codes = {shape(path): code for code, path in reversed(list(enumerate(PATHS)))}
    found: dict[str, set[str]] = {}
    for method, pattern in registered():
        for template in templates(pattern):
            found.setdefault(template, set()).add(method)
    missing = {path for path in found if shape(path) not in codes}
    for path in sorted(found):
        if options.all or (path in missing and not DEPRECATED.match(path)):
            print(f"{codes.get(shape(path), '-'):>4} {','.join(sorted(found[path])):<16} {path}")
    print(f"{len(found) - len(missing)} of {len(found)} have a code")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
