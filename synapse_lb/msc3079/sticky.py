# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a client says once and means for the whole association (MSC3079, options 256 and 257; x1)."""

from __future__ import annotations

import attrs

from synapse_lb.msc3079.keys_v1 import KEY_VERSION_1
from synapse_lb.msc3079.x1.aliases import AliasBook


@attrs.define
class StickyState:
    """The sticky options of one association. A new association starts with a new one.

    Its size is bounded by that of one option and by the number of aliases that there are.

    Attributes:
        token: The access token given last; None before the first and after an empty one.
        announced_key_version: The last value of option 257; 0 stands for text keys, None for no option.
        used_integer_keys: Whether a body with integer keys has come.
        allows_x1: Whether the client may choose x1.
        aliases: Those of x1; None as long as it has not been chosen.
    """

    token: str | None = attrs.field(default=None, repr=False)
    announced_key_version: int | None = None
    used_integer_keys: bool = False
    allows_x1: bool = False
    aliases: AliasBook | None = attrs.field(default=None, repr=False)

    @property
    def key_version(self) -> int | None:
        """The key version of answers in CBOR; None for text keys.

        Option 257 decides. Without it, version 1 from the first body with integer keys on.
        """
        if self.announced_key_version is not None:
            return self.announced_key_version or None
        return KEY_VERSION_1 if self.used_integer_keys else None

    def forget_token(self) -> None:
        """Drop the token: requests without option 256 are unauthenticated again."""
        self.token = None
