# SPDX-License-Identifier: AGPL-3.0-or-later
"""Values that `json` takes beside the built-in ones."""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from typing import Any


class Frozen(Mapping[str, Any]):
    """A mapping that is no dict, as immutabledict and Synapse's JsonObject are."""

    def __init__(self, **items: Any) -> None:
        self._items = items

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Membership(str, enum.Enum):
    JOIN = "join"


class Level(enum.IntEnum):
    ADMIN = 100


class Name(str):
    def __str__(self) -> str:
        return "something else"
