# SPDX-License-Identifier: AGPL-3.0-or-later
"""JSON values -> x1's CBOR and tail (docs/extensions.md, "x1 bodies")."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import repeat
from typing import Any, Final

from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.cbor_encoder import MAX_ENCODE_DEPTH, TOO_DEEP
from synapse_lb.msc3079.cbor_scalars import FALSE, NULL, TRUE, Scalars, plain_value, text_key
from synapse_lb.msc3079.errors import CborError
from synapse_lb.msc3079.x1 import texts
from synapse_lb.msc3079.x1.aliases import SHARES, AliasBook, AliasKind
from synapse_lb.msc3079.x1.keys import KEY_TO_INTEGER
from synapse_lb.msc3079.x1.plans import Form, Plan, is_default, plan
from synapse_lb.msc3079.x1.templates import NO_DEFAULT
from synapse_lb.msc3079.x1.values import (
    FIRST_TIME,
    FROM_TAIL,
    LAST_TIME,
    TIME_START,
    VALUE_TO_SIMPLE,
    Kind,
    Simple,
)

_BYTES: Final = 0x40

_KEYS: Final = {
    key: cbor.head(cbor.NEGATIVE, -1 - integer) if integer < 0 else cbor.head(cbor.UNSIGNED, integer)
    for key, integer in KEY_TO_INTEGER.items()
}

_UNDEFINED: Final = b"\xf7"

_ABSENT: Final = object()
"""What stands in the items for a value that a template leaves out."""


def simple(number: int) -> bytes:
    """A simple value (RFC 8949 section 3.3)."""
    return bytes((0xE0 | number,)) if number < 24 else bytes((0xF8, number))


def byte_string(content: bytes) -> bytes:
    """A byte string."""
    return cbor.head(_BYTES, len(content)) + content


_VALUES: Final = {text: simple(number) for text, number in VALUE_TO_SIMPLE.items()}

_ALIASED_KEYS: Final = {
    "device_id": AliasKind.DEVICE,
    "session_id": AliasKind.SESSION,
    "sender_key": AliasKind.SESSION,
}

_SHORTEST_BASE64: Final = 16

_MOST_NEW: Final = {kind: share // 2 for kind, share in SHARES.items()}
"""Definitions of each kind in one body: a first sync must not use up the numbers on rooms where nothing happens."""

_AGE: Final = "age"

_TOKEN_STARTS: Final = frozenset("st0123456789")

_SAME_AGE: Final = simple(Simple.SAME_AGE)

_ROOMS_OWN: Final = simple(Simple.ROOMS_OWN)

_ID_LENGTH: Final = 44

_BARE: Final = frozenset({str, int, float, bool})
"""Types of values that may stand behind a tag alone, without an array around them."""

Items = Iterator["tuple[str | None, str | None, Any]"]
"""What is still to be written of a map or an array: the key to be written, the key that a value has, the value."""


class X1Encoder(Scalars):
    """One run: a value, or the parameters of a path.

    Args:
        book: The aliases of the association; None for none.
        lossy: As in `cbor.encode`.
    """

    def __init__(self, book: AliasBook | None, lossy: bool) -> None:
        self._lossy = lossy
        self._book = book
        self._texts: dict[str, bytes] = {}
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._packed = 0
        self._tail = bytearray()
        self._has_tail = True
        self._rooms_own: str | None = None
        self._positions: texts.Positions = ()
        self._time = TIME_START
        self._present: int | None = None
        self._new = dict.fromkeys(AliasKind, 0)
        self.definitions: list[int] = []

    @property
    def tail(self) -> bytes:
        """What belongs behind the CBOR."""
        return bytes(self._tail)

    def encode(self, value: Any) -> bytes:
        """The CBOR of a value. Call it once."""
        pieces: list[bytes] = []
        add = pieces.append
        stack: list[Items] = []
        items: Items = iter(((None, None, value),))
        while True:
            for written, key, item in items:
                if written is not None:
                    add(_KEYS.get(written) or self._text_key(written))
                kind = type(item)
                if kind is str:
                    add(_VALUES.get(item) or self._texts.get(item) or self._text(item, key))
                elif kind is dict or kind is list:
                    stack.append(items)
                    if len(stack) > MAX_ENCODE_DEPTH:
                        raise CborError(TOO_DEEP)
                    items = self._map(item, add) if kind is dict else self._array(item, add)
                    break
                elif kind is int:
                    add(self._number(item, key))
                elif item is True:
                    add(TRUE)
                elif item is False:
                    add(FALSE)
                elif item is None:
                    add(NULL)
                elif kind is float:
                    add(self._float(item))
                elif item is _ABSENT:
                    add(_UNDEFINED)
                else:
                    stack.append(items)
                    items = iter(((None, key, plain_value(item)),))
                    break
            else:
                if not stack:
                    return b"".join(pieces)
                items = stack.pop()

    # Containers

    def _array(self, items: list[Any], add: Callable[[bytes], None]) -> Items:
        add(cbor.head(cbor.ARRAY, len(items)))
        return zip(repeat(None), repeat(None), items)

    def _map(self, items: dict[Any, Any], add: Callable[[bytes], None]) -> Items:
        keys = tuple(items)
        how = self._plans.get(keys)
        if how is None:
            if any(type(key) is not str for key in keys):
                return self._map({text_key(key): value for key, value in items.items()}, add)
            how = self._plans[keys] = plan(keys)
        if how.forms and (found := _best(how, items)) is not None:
            form, count = found
            add(form.head)
            first = form.fields[0][0]
            if count > 1 or first is None or type(items[first]) not in _BARE:
                add(cbor.head(cbor.ARRAY, count))
            return self._filled(form, count, items)
        add(cbor.head(cbor.MAP, len(items)))
        return iter([(key, key, items[key]) for key in how.keys])

    def _filled(self, form: Form, count: int, items: dict[str, Any]) -> Items:
        """The values of a template, in its order."""
        for key, default in form.fields[:count]:
            if key is None or (default is not NO_DEFAULT and is_default(items[key], default)):
                yield None, None, _ABSENT
            else:
                yield None, key, items[key]

    # Scalars

    def _number(self, value: int, key: str | None) -> bytes:
        if FIRST_TIME <= value <= LAST_TIME:
            self._tail += texts.varint(texts.zigzag(value - self._time))
            self._time = value
            return simple(Simple.TIME)
        if key == _AGE and 0 <= value < FIRST_TIME:
            present = self._time + value
            if present == self._present:
                return _SAME_AGE
            before = self._time if self._present is None else self._present
            self._tail += texts.varint(texts.zigzag(present - before))
            self._present = present
            return simple(Simple.AGE)
        return self._integer(value)

    def _text_key(self, key: str) -> bytes:
        """A key that is not in the table."""
        if key[:1] == "!":
            self._rooms_own = "$" + key[1:]
        return (
            _VALUES.get(key)
            or self._texts.get(key)
            or self._aliased(key, None)
            or (self._tailed(key) if self._has_tail else self._inline(key))
            or self._plain(key)
        )

    def _text(self, text: str, key: str | None) -> bytes:
        """A value that has no bytes yet."""
        if text == self._rooms_own and len(text) == _ID_LENGTH:
            return _ROOMS_OWN
        kind = _ALIASED_KEYS.get(key) if key is not None else None
        found = self._aliased(text, kind) or self._tailed(text)
        if found is None and text[:1] == "m":
            found = self._inline(text)
        return found or self._plain(text)

    def _plain(self, text: str) -> bytes:
        utf8 = self._utf8(text)
        encoded = self._texts[text] = cbor.head(cbor.TEXT, len(utf8)) + utf8
        return encoded

    def _aliased(self, text: str, kind: AliasKind | None) -> bytes | None:
        """A reference to an alias, or its definition."""
        if self._book is None:
            return None
        number = self._book.reference(text)
        if number is not None:
            encoded = self._texts[text] = byte_string(bytes((number,)))
            return encoded
        kind = _alias_kind(text) if kind is None else kind
        if kind is None or self._new[kind] >= _MOST_NEW[kind]:
            return None
        number = self._book.definition(text, kind)
        if number is None:
            return None
        self._new[kind] += 1
        self.definitions.append(number)
        form = self._take_along(text) if self._has_tail else None
        if form is not None:
            content = bytes((FROM_TAIL | form,))
        else:
            content = _inline_content(text) or bytes((Kind.TEXT,)) + self._utf8(text)
        self._texts[text] = byte_string(bytes((number,)))
        return byte_string(bytes((Kind.DEFINITION, number)) + content)

    def _inline(self, text: str) -> bytes | None:
        """A packed text as a byte string."""
        content = _inline_content(text)
        if content is None:
            return None
        encoded = self._texts[text] = byte_string(content)
        return encoded

    def _tailed(self, text: str) -> bytes | None:
        """A packed text as a simple value, with its bytes in the tail."""
        form = self._take_along(text)
        if form is None:
            return None
        self._texts[text] = byte_string(bytes((Kind.REPETITION,)) + texts.varint(self._packed - 1))
        return simple(form)

    def _take_along(self, text: str) -> Simple | None:
        """Put the bytes of a text into the tail, if it is one that can be packed; return as what."""
        found = _base64(text)
        if found is not None:
            form, raw = found
            if form in (Simple.BASE64, Simple.BASE64_URL):
                self._tail += texts.varint(len(raw))
            self._tail += raw
        else:
            token = texts.pack_token(text, self._positions) if text[:1] in _TOKEN_STARTS else None
            if token is None:
                return None
            form = Simple.TOKEN
            raw, self._positions = token
            self._tail += raw
        self._packed += 1
        return form

    def parameters(self, values: Iterable[str]) -> bytes:
        """The parameters of a path: texts one after the other, all of them inline."""
        self._has_tail = False
        return b"".join([self._text_key(value) for value in values])

    def query(self, pairs: Iterable[tuple[str, str]]) -> bytes:
        """The parameters of a query: names and values in turn. Decimal numbers are integers."""
        self._has_tail = False
        pieces: list[bytes] = []
        for name, value in pairs:
            pieces.append(_KEYS.get(name) or self._text_key(name))
            number = texts.decimal(value)
            pieces.append(self._text_key(value) if number is None else cbor.head(cbor.UNSIGNED, number))
        return b"".join(pieces)


def _best(how: Plan, items: dict[str, Any]) -> tuple[Form, int] | None:
    """The template with the fewest values for a map, and how many of its values are to be written."""
    best: tuple[int, Form, int] | None = None
    for form in how.forms:
        count = len(form.fields)
        while count > 1 and _goes_without_saying(form.fields[count - 1], items):
            count -= 1
        if best is None or count < best[0]:
            best = (count, form, count)
    return None if best is None else best[1:]


def _goes_without_saying(field: tuple[str | None, Any], items: dict[str, Any]) -> bool:
    key, default = field
    return key is None or (default is not NO_DEFAULT and is_default(items[key], default))


def _alias_kind(text: str) -> AliasKind | None:
    """What an id is that deserves an alias wherever it stands."""
    if len(text) < 6:
        return None
    if text[0] == "!":
        return AliasKind.ROOM
    return AliasKind.USER if text[0] == "@" and ":" in text else None


def _base64(text: str) -> tuple[Simple, bytes] | None:
    """How a text with base64 in it is packed into the tail."""
    length = len(text)
    if length < _SHORTEST_BASE64 or not text.isascii():
        return None
    if length == _ID_LENGTH and text[0] in "$!":
        raw = texts.url_to_bytes(text[1:])
        return None if raw is None else (Simple.EVENT_ID if text[0] == "$" else Simple.ROOM_ID, raw)
    if not _looks_random(text):
        return None
    raw = texts.standard_to_bytes(text)
    if raw is not None:
        form = {43: Simple.KEY, 86: Simple.SIGNATURE}.get(length, Simple.BASE64)
        return form, raw
    raw = texts.url_to_bytes(text)
    return None if raw is None else (Simple.BASE64_URL, raw)


def _looks_random(text: str) -> bool:
    """Whether a text may be base64 rather than words: those are better left to the compression."""
    start = text[:64]
    has_digit = any(character in "0123456789+/-_" for character in start)
    return has_digit and start != start.lower() and start != start.upper() and " " not in start


_KINDS: Final = {
    Simple.EVENT_ID: Kind.EVENT_ID,
    Simple.ROOM_ID: Kind.ROOM_ID,
    Simple.BASE64_URL: Kind.BASE64_URL,
}


def _inline_content(text: str) -> bytes | None:
    """The content of a byte string for a text, or None if it is better left as it is."""
    found = _base64(text)
    if found is not None:
        form, raw = found
        return bytes((_KINDS.get(form, Kind.BASE64),)) + raw
    if text[:1] == "m":
        numbers = texts.pack_transaction(text)
        return None if numbers is None else bytes((Kind.TRANSACTION,)) + numbers
    token = texts.pack_token(text, ()) if text[:1] in _TOKEN_STARTS else None
    return None if token is None else bytes((Kind.TOKEN,)) + token[0]
