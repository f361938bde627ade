# SPDX-License-Identifier: AGPL-3.0-or-later
"""The test vectors of MSC3079: JSON values and their canonical CBOR with version-1 keys."""

from __future__ import annotations

from typing import Any, Final

MESSAGE: Final[dict[str, Any]] = {
    "type": "m.room.message",
    "content": {"msgtype": "m.text", "body": "Hello World"},
    "sender": "@alice:localhost",
    "room_id": "!foo:localhost",
    "unsigned": {"bool_value": True, "null_value": None},
}

MESSAGE_CBOR: Final = bytes.fromhex(
    "a5026e6d2e726f6f6d2e6d65737361676503a2181b6b48656c6c6f20576f726c64181c666d2e74657874056e21666f6f3a6c"
    "6f63616c686f7374067040616c6963653a6c6f63616c686f737409a26a626f6f6c5f76616c7565f56a6e756c6c5f76616c75"
    "65f6"
)

ERROR: Final = {"error": "something", "errcode": "M_UNKNOWN"}

ERROR_CBOR: Final = bytes.fromhex("a21866694d5f554e4b4e4f574e186769736f6d657468696e67")
