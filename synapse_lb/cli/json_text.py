# SPDX-License-Identifier: AGPL-3.0-or-later
"""JSON text in and out of the commands, strictly: what Matrix has no place for is refused, not guessed at."""

from __future__ import annotations

import json
from typing import Any, NoReturn


class JsonTextError(ValueError):
    """The text is no JSON that Matrix could carry."""


def parse_json(text: bytes | str) -> Any:
    """Read one JSON value.

    Args:
        text: JSON text; bytes are UTF-8, with or without a byte order mark.

    Raises:
        JsonTextError: it is not JSON, is nested too deeply, has a key twice in one object, or has one of the
            `NaN` and `Infinity` that Python would let pass.
    """
    try:
        decoded = text.decode("utf-8-sig") if isinstance(text, bytes) else text
        return json.loads(decoded, object_pairs_hook=_object, parse_constant=_constant)
    except UnicodeDecodeError as error:
        raise JsonTextError(f"not UTF-8 at byte {error.start}") from None
    except json.JSONDecodeError as error:
        raise JsonTextError(f"{error.msg} at line {error.lineno}, column {error.colno}") from None
    except RecursionError:
        raise JsonTextError("nested too deeply") from None
    except JsonTextError:
        raise
    except ValueError:
        # Python refuses to read integers of thousands of digits.
        raise JsonTextError("a number is too long") from None


def format_json(value: Any, *, pretty: bool) -> str:
    """Write one JSON value, with its keys in the order they have.

    Args:
        value: the value.
        pretty: indent for people; otherwise one line without spaces.

    Raises:
        JsonTextError: it is nested too deeply.
    """
    try:
        if pretty:
            return json.dumps(value, ensure_ascii=False, indent=2)
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    except RecursionError:
        raise JsonTextError("nested too deeply") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise JsonTextError(f"key {twice!r} is there twice")
    return result


def _constant(name: str) -> NoReturn:
    raise JsonTextError(f"{name} is not JSON")
