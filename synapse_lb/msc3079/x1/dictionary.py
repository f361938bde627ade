# SPDX-License-Identifier: AGPL-3.0-or-later
"""The preset dictionary of x1's compression (RFC 1951; zlib's `zdict`)."""

from __future__ import annotations

from typing import Final

DICTIONARY: Final = b"m.room.join_rulesm.room.power_levelsm.room.history_visibilitym.room.create"
"""What has been sent, as it were, before each compressed body."""
