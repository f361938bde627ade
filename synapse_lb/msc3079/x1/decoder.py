# SPDX-License-Identifier: AGPL-3.0-or-later
"""x1's CBOR and tail -> JSON values (docs/extensions.md, "x1 bodies")."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.x1 import texts
from synapse_lb.msc3079.x1.aliases import AliasBook
from synapse_lb.msc3079.x1.errors import AliasError, TooLargeError, UnknownAliasError, X1Error
from synapse_lb.msc3079.x1.keys import INTEGER_TO_KEY
from synapse_lb.msc3079.x1.templates import NO_DEFAULT, TEMPLATES
from synapse_lb.msc3079.x1.values import FROM_TAIL, SIMPLE_TO_VALUE, TIME_START, Kind, Simple

_BYTES: Final = 0x40
_SIMPLE: Final = 0xE0
_LONG_SIMPLE: Final = 0xF8
_UNDEFINED: Final = 0xF7
_ARRAY_OF_ONE: Final = cbor.ARRAY | 1

_ABSENT: Final = object()
"""What an undefined value is until its template is filled."""

_ID_LENGTH: Final = 44

_DEFAULT_COST: Final = 64
"""What a default counts for among the characters that references stand for."""


class X1Parser(cbor.Parser):
    """One run.

    Args:
        data: The CBOR.
        tail: What stands behind it.
        book: The aliases of the association; None for none.
        max_expansion: Characters that references may stand for, all together.
    """

    def __init__(self, data: bytes, tail: texts.Reader, book: AliasBook | None, max_expansion: int) -> None:
        super().__init__(data)
        self._tail = tail
        self._book = book
        self._expansion = max_expansion
        self._packed: list[str] = []
        self._rooms_own: str | None = None
        self._positions: texts.Positions = ()
        self._time = TIME_START
        self._present: int | None = None
        self._absent = 0
        self.definitions: dict[int, str] = {}

    def _key(self, initial: int, position: int) -> tuple[str, int]:
        major = initial & cbor.MAJOR
        if major == cbor.TEXT:
            text, position = self._text(initial, position)
        elif major == _BYTES:
            text, position = self._byte_string(initial, position)
        elif major == _SIMPLE:
            number, position = self._simple_number(initial, position)
            value = self._simple(number)
            if type(value) is not str:
                raise X1Error("A map key that is no text", well_formed=True)
            text = value
        else:
            return self._integer_key(major, initial, position)
        if text[:1] == "!":
            self._rooms_own = "$" + text[1:]
        return text, position

    def _integer_key(self, major: int, initial: int, position: int) -> tuple[str, int]:
        if major not in (cbor.UNSIGNED, cbor.NEGATIVE):
            raise X1Error("A map key that is neither text nor a known integer", well_formed=True)
        integer, position = self._argument(initial, position)
        name = INTEGER_TO_KEY.get(integer if major == cbor.UNSIGNED else -1 - integer)
        if name is None:
            raise X1Error("An integer key that x1 does not have", well_formed=True)
        return name, position

    def _scalar(self, initial: int, position: int) -> tuple[Any, int]:
        if initial & cbor.MAJOR == _BYTES:
            return self._byte_string(initial, position)
        if _SIMPLE <= initial < _SIMPLE + 20 or initial == _LONG_SIMPLE:
            number, position = self._simple_number(initial, position)
            return self._simple(number), position
        if initial == _UNDEFINED:
            self._absent += 1
            return _ABSENT, position
        return super()._scalar(initial, position)

    # Templates

    def _tag(self, initial: int, position: int) -> tuple[int, int, int]:
        tag, position = self._argument(initial, position)
        if tag >= len(TEMPLATES):
            raise X1Error("A tag that x1 does not have", well_formed=True)
        inner = self._data[position]
        if cbor.ARRAY <= inner < cbor.MAP:
            return tag, inner, position + 1
        if cbor.MAP <= inner < cbor.SIMPLE_OR_FLOAT:
            raise X1Error(
                "A template that is filled with neither an array nor a single value", well_formed=True
            )
        return tag, _ARRAY_OF_ONE, position

    def _tagged(self, tag: int, value: Any) -> Any:
        template = TEMPLATES[tag]
        if len(value) > len(template):
            raise X1Error("A template with too many values", well_formed=True)
        self._absent -= sum(given is _ABSENT for given in value)
        value += [_ABSENT] * (len(template) - len(value))
        filled: dict[str, Any] = {}
        for (key, default), given in zip(template, value, strict=True):
            if given is not _ABSENT:
                filled[key] = given
            elif default is not NO_DEFAULT:
                self._expand(_DEFAULT_COST)
                filled[key] = _copy(default)
        return filled

    def run(self, max_depth: int) -> tuple[Any, int]:
        """As `cbor.Parser.run`.

        Raises:
            X1Error: a value is undefined outside a template, among others.
        """
        value, end = super().run(max_depth)
        if self._absent:
            raise X1Error("A value that is undefined", well_formed=True)
        return value, end

    def _simple_number(self, initial: int, position: int) -> tuple[int, int]:
        if initial != _LONG_SIMPLE:
            return initial - _SIMPLE, position
        number = self._data[position]
        if number < 32:
            raise X1Error("A simple value in two bytes that needs one")
        return number, position + 1

    def parameter(self, position: int) -> tuple[str, int]:
        """One text of a path."""
        initial = self._data[position]
        value, position = self._scalar(initial, position + 1)
        if type(value) is not str:
            raise X1Error("A parameter that is no text", well_formed=True)
        return value, position

    def pair(self, position: int) -> tuple[str, str, int]:
        """One name and value of a query, and the position behind it."""
        initial = self._data[position]
        name, position = self._key(initial, position + 1)
        initial = self._data[position]
        if initial & cbor.MAJOR == cbor.UNSIGNED:
            number, position = self._argument(initial, position + 1)
            return name, str(number), position
        value, position = self.parameter(position)
        return name, value, position

    # Byte strings

    def _byte_string(self, initial: int, position: int) -> tuple[str, int]:
        length, position = self._argument(initial, position)
        if length > len(self._data) - position:
            raise X1Error(cbor.TOO_SHORT)
        end = position + length
        if length == 1:
            return self._alias(self._data[position]), end
        content = texts.Reader(self._data[position:end])
        kind = content.take(1)[0]
        if kind == Kind.DEFINITION:
            return self._definition(content), end
        if kind == Kind.REPETITION:
            return self._repetition(content), end
        return self._content(kind, content), end

    def _alias(self, number: int) -> str:
        text = self.definitions.get(number)
        if text is None:
            if self._book is None:
                raise UnknownAliasError(number)
            text = self._book.resolve(number)
        self._expand(len(text))
        return text

    def _definition(self, content: texts.Reader) -> str:
        number = content.take(1)[0]
        kind = content.take(1)[0]
        if FROM_TAIL <= kind <= FROM_TAIL | Simple.TOKEN:
            if content.left:
                raise X1Error("Bytes after a packed text", well_formed=True)
            text = self._packed_text(kind - FROM_TAIL)
        else:
            text = self._content(kind, content)
        if self._book is None:
            raise AliasError("A definition of an alias where there are none", well_formed=True)
        self._book.check(number, text)
        if self.definitions.setdefault(number, text) != text:
            raise AliasError("A second definition of an alias", well_formed=True)
        return text

    def _repetition(self, content: texts.Reader) -> str:
        index = content.varint()
        if content.left or index >= len(self._packed):
            raise X1Error("A repetition of nothing", well_formed=True)
        text = self._packed[index]
        self._expand(len(text))
        return text

    def _content(self, kind: int, content: texts.Reader) -> str:
        reader = _CONTENTS.get(kind)
        if reader is None:
            raise X1Error("A byte string of an unknown kind", well_formed=True)
        text = reader(content)
        if content.left:
            raise X1Error("Bytes after a packed text", well_formed=True)
        return text

    def _expand(self, characters: int) -> None:
        self._expansion -= characters
        if self._expansion < 0:
            raise TooLargeError("The references stand for too much text", well_formed=True)

    # Simple values

    def _simple(self, number: int) -> str | int:
        text = SIMPLE_TO_VALUE.get(number)
        if text is not None:
            return text
        tail = self._tail
        if number == Simple.TIME:
            self._time += texts.unzigzag(tail.varint())
            return self._in_range(self._time)
        if number == Simple.AGE:
            present = self._time if self._present is None else self._present
            self._present = self._in_range(present + texts.unzigzag(tail.varint()))
            return self._in_range(self._present - self._time)
        if number == Simple.SAME_AGE:
            if self._present is None:
                raise X1Error("The same age as none", well_formed=True)
            return self._in_range(self._present - self._time)
        if number == Simple.ROOMS_OWN:
            if self._rooms_own is None or len(self._rooms_own) != _ID_LENGTH:
                raise X1Error("The event of a room that was not named", well_formed=True)
            self._expand(_ID_LENGTH)
            return self._rooms_own
        return self._packed_text(number)

    def _packed_text(self, number: int) -> str:
        """One of the texts whose bytes are in the tail."""
        tail = self._tail
        if number == Simple.TOKEN:
            text, self._positions = texts.unpack_token(tail, self._positions)
        elif number in _TAILS:
            text = _TAILS[number](tail)
        else:
            raise X1Error("A simple value that x1 does not have", well_formed=True)
        self._packed.append(text)
        return text

    def _in_range(self, value: int) -> int:
        if not cbor.MIN_INTEGER <= value <= cbor.MAX_INTEGER:
            raise X1Error("Integer outside 64 bits", well_formed=True)
        return value


def _copy(default: Any) -> Any:
    """A default as a value of its own."""
    if type(default) is dict:
        return {key: _copy(value) for key, value in default.items()}
    return list(default) if type(default) is list else default


def _utf8(content: texts.Reader) -> str:
    return content.rest().decode()


def _id(content: texts.Reader, sigil: str) -> str:
    return sigil + texts.bytes_to_url(content.take(32))


_CONTENTS: Final[dict[int, Callable[[texts.Reader], str]]] = {
    Kind.TEXT: _utf8,
    Kind.EVENT_ID: lambda content: _id(content, "$"),
    Kind.ROOM_ID: lambda content: _id(content, "!"),
    Kind.BASE64: lambda content: texts.bytes_to_standard(content.rest()),
    Kind.BASE64_URL: lambda content: texts.bytes_to_url(content.rest()),
    Kind.TOKEN: lambda content: texts.unpack_token(content, ())[0],
    Kind.TRANSACTION: texts.unpack_transaction,
}

_TAILS: Final[dict[int, Callable[[texts.Reader], str]]] = {
    Simple.EVENT_ID: lambda tail: _id(tail, "$"),
    Simple.ROOM_ID: lambda tail: _id(tail, "!"),
    Simple.KEY: lambda tail: texts.bytes_to_standard(tail.take(32)),
    Simple.SIGNATURE: lambda tail: texts.bytes_to_standard(tail.take(64)),
    Simple.BASE64: lambda tail: texts.bytes_to_standard(tail.take(tail.varint())),
    Simple.BASE64_URL: lambda tail: texts.bytes_to_url(tail.take(tail.varint())),
}
