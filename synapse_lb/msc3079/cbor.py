# SPDX-License-Identifier: AGPL-3.0-or-later
"""JSON values as CBOR and back (RFC 8949), with the integer keys of MSC3079.

Decoding lets cbor2 parse, with every tag refused and the depth bounded, and then walks the result once,
without recursion, to check it and to give the keys their names.

Encoding is our own loop over an explicit stack: one pass, no copy of the value, and no depth at which it
breaks (cbor2's recursion overflows the C stack on deeply nested values). Canonical output is that of RFC 7049
section 3.9, which is what deployed clients produce: shortest heads and floats, definite lengths, keys
sorted by the length of their encoding and then bytewise.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import repeat
from typing import Any, Final, NoReturn

import attrs
import cbor2

from synapse_lb.msc3079.errors import CborError
from synapse_lb.msc3079.keys_v1 import INTEGER_TO_KEY, KEY_TO_INTEGER, KEY_VERSION_1

DEFAULT_MAX_DEPTH: Final = 100
"""Nested arrays and maps that a request may have. The deepest Matrix bodies in use have about ten."""

HIGHEST_MAX_DEPTH: Final = 2000
"""The largest depth that may be configured: cbor2 recurses on the C stack, some 100 bytes a level."""

MAX_ENCODE_DEPTH: Final = 100_000
"""Levels at which an encoder gives up: nothing parsed from JSON is so deep, but a cycle is."""

MIN_INTEGER: Final = -(2**63)
MAX_INTEGER: Final = 2**64 - 1
"""The integers that CBOR and 64-bit readers share; others are refused, as bignums are tags."""


@attrs.frozen
class Decoded:
    """What a CBOR body says.

    Attributes:
        value: JSON value.
        used_integer_keys: Whether any map, however deep, had an integer key.
    """

    value: Any = attrs.field(repr=False)
    used_integer_keys: bool


# --- decoding ---------------------------------------------------------------------------------------


class _TagRefusedError(Exception):
    """Raised inside cbor2 for any tag."""


def _refuse_tag(value: object, immutable: bool) -> NoReturn:
    raise _TagRefusedError


class _EveryTag(Mapping[int, Callable[[Any, bool], Any]]):
    """Claims a handler for each tag, so that none of cbor2's own runs (regexes, dates, shared values)."""

    def __getitem__(self, tag: int) -> Callable[[Any, bool], Any]:
        return _refuse_tag

    def __iter__(self) -> Iterator[int]:
        return iter(())

    def __len__(self) -> int:
        return 0


_EVERY_TAG: Final = _EveryTag()


def decode(data: bytes, *, max_depth: int = DEFAULT_MAX_DEPTH) -> Decoded:
    """Decode one CBOR item that stands for a JSON value.

    * Integer keys are expanded with version 1 of the table. If a map has a key in both forms, the text form
      wins. A text key that looks like a number stays as it is. An integer that the table does not have is an
      error: nobody can know what was meant, and a guess would be stored for good.
    * A float with an integral value within 64 bits becomes an integer, since deployed clients send every
      number as a float and Matrix has none. Others stay: Matrix's own rules decide about them.
    * Indefinite lengths are accepted.

    Args:
        data: The body.
        max_depth: Nested arrays and maps that are allowed, 1 to 2000.

    Raises:
        CborError: `data` is not one well-formed item, or has tags, byte strings, undefined or other simple
            values, NaN or infinities, integers outside [-2**63, 2**64), keys that are neither text nor
            known integers, the same key twice, text that is not UTF-8, or more depth than allowed.
    """
    value = _parse(data, max_depth)
    root = [value]
    used_integer_keys = _settle(root)
    return Decoded(root[0], used_integer_keys)


def _parse(data: bytes, max_depth: int) -> Any:
    if not 1 <= max_depth <= HIGHEST_MAX_DEPTH:
        raise ValueError(f"max_depth must be 1 to {HIGHEST_MAX_DEPTH}, not {max_depth}")
    decoder = cbor2.CBORDecoder(
        io.BytesIO(data), semantic_decoders=_EVERY_TAG, max_depth=max_depth, allow_duplicate_keys=False
    )
    try:
        value = decoder.decode()
    except cbor2.CBORDecodeError as error:
        if isinstance(error.__cause__, _TagRefusedError):
            raise CborError("CBOR tags stand for nothing in JSON", well_formed=True) from None
        if isinstance(error, cbor2.CBORDecodeEOF):
            raise CborError("The CBOR ends too early") from None
        # cbor2's own message may quote a key of the body.
        raise CborError(f"Not CBOR, or a key twice in a map, or more than {max_depth} levels") from None
    try:
        decoder.read(1)
    except cbor2.CBORDecodeEOF:
        return value
    raise CborError("Bytes after the CBOR item")


def _settle(root: list[Any]) -> bool:
    """Check everything below `root` and bring it to its JSON form, in place.

    Returns:
        Whether an integer key was found.
    """
    used_integer_keys = False
    pending: list[Any] = [root]
    while pending:
        container = pending.pop()
        slots: Iterable[tuple[Any, Any]]
        if type(container) is dict:
            if _expand_keys(container, pending):
                used_integer_keys = True
            slots = container.items()
        else:
            slots = enumerate(container)
        for slot, value in slots:
            kind = type(value)
            if kind is str or kind is bool or value is None:
                continue
            if kind is dict or kind is list:
                pending.append(value)
            elif kind is int:
                if not MIN_INTEGER <= value <= MAX_INTEGER:
                    raise CborError("Integer outside 64 bits", well_formed=True)
            else:
                # Setting the value of a key that exists does not disturb the iteration.
                container[slot] = _settle_scalar(value)
    return used_integer_keys


def _settle_scalar(value: Any) -> float | int:
    if type(value) is float:
        if not math.isfinite(value):
            raise CborError("NaN and infinities stand for nothing in JSON", well_formed=True)
        if value.is_integer() and MIN_INTEGER <= value <= MAX_INTEGER:
            return int(value)
        return value
    raise CborError("Byte strings and simple values stand for nothing in JSON", well_formed=True)


def _expand_keys(container: dict[Any, Any], pending: list[Any]) -> bool:
    """Give the integer keys of one map their names, in place; whether there were any."""
    for key in container:
        if type(key) is not str:
            break
    else:
        return False
    expanded: dict[str, Any] = {}
    for key, value in container.items():
        if type(key) is str:
            expanded[key] = value
        elif type(key) is int:
            name = INTEGER_TO_KEY.get(key)
            if name is None:
                raise CborError("Integer key that version 1 does not have", well_formed=True)
            if name not in container:
                expanded[name] = value
            else:
                pending.append([value])  # dropped, but it must be valid all the same
        else:
            raise CborError("Map key that is neither text nor an integer", well_formed=True)
    container.clear()
    container.update(expanded)
    return True


# --- encoding ---------------------------------------------------------------------------------------

_UNSIGNED: Final = 0x00
_NEGATIVE: Final = 0x20
_TEXT: Final = 0x60
_ARRAY: Final = 0x80
_MAP: Final = 0xA0
_FALSE: Final = b"\xf4"
_TRUE: Final = b"\xf5"
_NULL: Final = b"\xf6"


def _head(major: int, argument: int) -> bytes:
    """The initial byte and argument of an item (RFC 8949 section 3)."""
    if argument < 24:
        return bytes((major | argument,))
    if argument < 0x100:
        return bytes((major | 24, argument))
    if argument < 0x10000:
        return bytes((major | 25,)) + argument.to_bytes(2, "big")
    if argument < 0x100000000:
        return bytes((major | 26,)) + argument.to_bytes(4, "big")
    return bytes((major | 27,)) + argument.to_bytes(8, "big")


_SHORT: Final = 256
_TEXT_HEADS: Final = tuple(_head(_TEXT, length) for length in range(_SHORT))
_MAP_HEADS: Final = tuple(_head(_MAP, length) for length in range(_SHORT))
_KEYS_V1: Final = {key: _head(_UNSIGNED, integer) for key, integer in KEY_TO_INTEGER.items()}


def _key_order(item: tuple[bytes, Any]) -> tuple[int, bytes]:
    return len(item[0]), item[0]


def encode(value: Any, key_version: int | None = None, canonical: bool = True, lossy: bool = False) -> bytes:
    """Encode a JSON value.

    Takes what Python's `json` takes: mappings of any kind, lists, tuples, strings, numbers, booleans and
    None, their subclasses among them (enums). Keys that are not text become text as `json` makes them.

    Args:
        value: The value.
        key_version: Version of the integer keys to use; None for text keys.
        canonical: Sort the keys of each map. Without it they keep their order.
        lossy: Write what CBOR cannot carry as the nearest thing it can, instead of failing: lone
            surrogates as U+FFFD, integers outside 64 bits as floats, and what JSON has not (NaN and
            infinities) as null. For answers: one odd event in an old room must not make a whole
            `/sync` impossible for ever.

    Raises:
        CborError: the value has something that has no CBOR form here, or contains itself.
        ValueError: no such key version.
    """
    if key_version not in (None, KEY_VERSION_1):
        raise ValueError(f"No version {key_version} of the CBOR keys")
    return _Encoder(_EMPTY_KEYS if key_version is None else _KEYS_V1, canonical, lossy).encode(value)


_EMPTY_KEYS: Final[dict[str, bytes]] = {}


class _Encoder:
    """One run of `encode`. Pieces are collected and joined once."""

    def __init__(self, keys: Mapping[str, bytes], canonical: bool, lossy: bool) -> None:
        self._encoded_keys = dict(keys)
        self._canonical = canonical
        self._lossy = lossy

    def encode(self, value: Any) -> bytes:
        pieces: list[bytes] = []
        add = pieces.append
        stack: list[Iterator[tuple[bytes, Any]]] = []
        items: Iterator[tuple[bytes, Any]] = iter(((b"", value),))
        while True:
            for prefix, item in items:  # prefix: the encoded key in a map, nothing in an array
                add(prefix)
                kind = type(item)
                if kind is str:
                    encoded = self._utf8(item)
                    length = len(encoded)
                    add(_TEXT_HEADS[length] if length < _SHORT else _head(_TEXT, length))
                    add(encoded)
                elif kind is dict or kind is list:
                    stack.append(items)
                    if len(stack) > MAX_ENCODE_DEPTH:
                        raise CborError("Nested too deeply, or containing itself")
                    items = self._open_map(item, add) if kind is dict else self._open_array(item, add)
                    break
                elif kind is int:
                    add(self._integer(item))
                elif item is True:
                    add(_TRUE)
                elif item is False:
                    add(_FALSE)
                elif item is None:
                    add(_NULL)
                elif kind is float:
                    add(self._float(item))
                else:
                    stack.append(items)
                    items = iter(((b"", _plain(item)),))
                    break
            else:
                if not stack:
                    return b"".join(pieces)
                items = stack.pop()

    def _open_array(self, items: Sequence[Any], add: Callable[[bytes], None]) -> Iterator[tuple[bytes, Any]]:
        add(_head(_ARRAY, len(items)))
        return zip(repeat(b""), items)

    def _open_map(self, items: dict[Any, Any], add: Callable[[bytes], None]) -> Iterator[tuple[bytes, Any]]:
        encoded_keys = self._encoded_keys
        entries: list[tuple[bytes, Any]] = []
        for key, value in items.items():
            if type(key) is not str:
                return self._open_map({_text_key(k): v for k, v in items.items()}, add)
            encoded = encoded_keys.get(key)
            if encoded is None:
                utf8 = self._utf8(key)
                encoded = encoded_keys[key] = _head(_TEXT, len(utf8)) + utf8
            entries.append((encoded, value))
        length = len(entries)
        if self._canonical and length > 1:
            entries.sort(key=_key_order)
        add(_MAP_HEADS[length] if length < _SHORT else _head(_MAP, length))
        return iter(entries)

    def _utf8(self, text: str) -> bytes:
        try:
            return text.encode()
        except UnicodeEncodeError:
            if self._lossy:
                return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace").encode()
            raise CborError("Text with a lone surrogate is not Unicode") from None

    def _integer(self, value: int) -> bytes:
        if 0 <= value <= MAX_INTEGER:
            return _head(_UNSIGNED, value)
        if MIN_INTEGER <= value < 0:
            return _head(_NEGATIVE, -1 - value)
        if not self._lossy:
            raise CborError("Integer outside 64 bits")
        try:
            return self._float(float(value))
        except OverflowError:
            return _NULL

    def _float(self, value: float) -> bytes:
        if not math.isfinite(value):
            if self._lossy:
                return _NULL
            raise CborError("NaN and infinities stand for nothing in JSON")
        for initial, form in ((b"\xf9", ">e"), (b"\xfa", ">f")):
            try:
                packed = struct.pack(form, value)
            except OverflowError:
                continue
            if struct.unpack(form, packed)[0] == value:
                return initial + packed
        return b"\xfb" + struct.pack(">d", value)


def _plain(value: Any) -> Any:
    """The built-in value that `json` would see in an instance of another type."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (list, tuple)):
        return list(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int.__int__(value)
    if isinstance(value, float):
        return float.__float__(value)
    raise CborError(f"No JSON value: {type(value).__name__}")


def _text_key(key: Any) -> str:
    """A map key as `json` writes it."""
    if isinstance(key, str):
        return str.__str__(key)
    if key is None:
        return "null"
    if isinstance(key, bool):
        return "true" if key else "false"
    if isinstance(key, int):
        return int.__repr__(key)
    raise CborError(f"No key of a JSON object: {type(key).__name__}")
