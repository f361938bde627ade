# SPDX-License-Identifier: AGPL-3.0-or-later
"""CoAP options: those of a message, their value formats and their registry (RFC 7252 3.2, 5.4, 5.10).

The wire form of the option list is in `message`, that of the Block values in `block`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from enum import Enum
from types import MappingProxyType
from typing import Final

from attrs import field, frozen

from synapse_lb.coap.errors import OptionError
from synapse_lb.coap.numbers import OptionNumber

OptionPair = tuple[int, bytes]


def encode_uint(value: int) -> bytes:
    """Encode an option value of format uint: network order, no leading zero bytes, 0 as no byte at all.

    Args:
        value: A non-negative integer.

    Returns:
        The shortest form (RFC 7252 section 3.2).

    Raises:
        OptionError: The value is negative.
    """
    if value < 0:
        raise OptionError(f"a uint option cannot carry {value}")
    return value.to_bytes((value.bit_length() + 7) // 8, "big")


def decode_uint(value: bytes) -> int:
    """Decode an option value of format uint; a sender may put zero bytes in front (RFC 7252 section 3.2)."""
    return int.from_bytes(value, "big")


def is_critical(number: int) -> bool:
    """Whether a receiver that does not know the option must reject the message (RFC 7252 section 5.4.1)."""
    return number & 0x01 != 0


def is_unsafe(number: int) -> bool:
    """Whether a proxy that does not know the option must not forward the message (RFC 7252 section 5.4.2)."""
    return number & 0x02 != 0


def is_no_cache_key(number: int) -> bool:
    """Whether the option is safe to forward and is no part of the cache key (RFC 7252 5.4.2, 5.4.6)."""
    return number & 0x1E == 0x1C


class OptionFormat(Enum):
    """Formats of option values (RFC 7252 section 3.2)."""

    EMPTY = "empty"
    OPAQUE = "opaque"
    UINT = "uint"
    STRING = "string"


@frozen
class OptionDefinition:
    """One row of the registry (RFC 7252 section 5.10 table 4).

    Attributes:
        name: As the RFC writes it.
        format: Of the value.
        min_length: Bytes, inclusive.
        max_length: Bytes, inclusive.
        repeatable: Whether it may occur more than once in a message (section 5.4.5).
    """

    name: str
    format: OptionFormat
    min_length: int
    max_length: int
    repeatable: bool = False


_OPAQUE, _STRING, _UINT = OptionFormat.OPAQUE, OptionFormat.STRING, OptionFormat.UINT

REGISTRY: Final[Mapping[int, OptionDefinition]] = MappingProxyType(
    {
        # RFC 7252 section 5.10, table 4
        int(OptionNumber.IF_MATCH): OptionDefinition("If-Match", _OPAQUE, 0, 8, repeatable=True),
        int(OptionNumber.URI_HOST): OptionDefinition("Uri-Host", _STRING, 1, 255),
        int(OptionNumber.ETAG): OptionDefinition("ETag", _OPAQUE, 1, 8, repeatable=True),
        int(OptionNumber.IF_NONE_MATCH): OptionDefinition("If-None-Match", OptionFormat.EMPTY, 0, 0),
        int(OptionNumber.URI_PORT): OptionDefinition("Uri-Port", _UINT, 0, 2),
        int(OptionNumber.LOCATION_PATH): OptionDefinition("Location-Path", _STRING, 0, 255, repeatable=True),
        int(OptionNumber.URI_PATH): OptionDefinition("Uri-Path", _STRING, 0, 255, repeatable=True),
        int(OptionNumber.CONTENT_FORMAT): OptionDefinition("Content-Format", _UINT, 0, 2),
        int(OptionNumber.MAX_AGE): OptionDefinition("Max-Age", _UINT, 0, 4),
        int(OptionNumber.URI_QUERY): OptionDefinition("Uri-Query", _STRING, 0, 255, repeatable=True),
        int(OptionNumber.ACCEPT): OptionDefinition("Accept", _UINT, 0, 2),
        int(OptionNumber.LOCATION_QUERY): OptionDefinition(
            "Location-Query", _STRING, 0, 255, repeatable=True
        ),
        int(OptionNumber.PROXY_URI): OptionDefinition("Proxy-Uri", _STRING, 1, 1034),
        int(OptionNumber.PROXY_SCHEME): OptionDefinition("Proxy-Scheme", _STRING, 1, 255),
        int(OptionNumber.SIZE1): OptionDefinition("Size1", _UINT, 0, 4),
        # RFC 7641 section 2, table 1
        int(OptionNumber.OBSERVE): OptionDefinition("Observe", _UINT, 0, 3),
        # RFC 7959 section 2.1 table 1, and section 4
        int(OptionNumber.BLOCK2): OptionDefinition("Block2", _UINT, 0, 3),
        int(OptionNumber.BLOCK1): OptionDefinition("Block1", _UINT, 0, 3),
        int(OptionNumber.SIZE2): OptionDefinition("Size2", _UINT, 0, 4),
        # RFC 7967 section 2, table 1
        int(OptionNumber.NO_RESPONSE): OptionDefinition("No-Response", _UINT, 0, 1),
        # RFC 8613 section 2, figure 4
        int(OptionNumber.OSCORE): OptionDefinition("OSCORE", _OPAQUE, 0, 255),
        # RFC 9175 section 2.2.1 table 1, and section 3.2.1 table 2
        int(OptionNumber.ECHO): OptionDefinition("Echo", _OPAQUE, 1, 40),
        int(OptionNumber.REQUEST_TAG): OptionDefinition("Request-Tag", _OPAQUE, 0, 8, repeatable=True),
        # RFC 9177 section 4.1, table 1
        int(OptionNumber.Q_BLOCK1): OptionDefinition("Q-Block1", _UINT, 0, 3),
        int(OptionNumber.Q_BLOCK2): OptionDefinition("Q-Block2", _UINT, 0, 3, repeatable=True),
    }
)
"""What is known of each option by its number."""

RECOGNIZED_CRITICAL: Final[frozenset[int]] = frozenset(
    {
        OptionNumber.URI_HOST,
        OptionNumber.URI_PORT,
        OptionNumber.URI_PATH,
        OptionNumber.URI_QUERY,
        OptionNumber.ACCEPT,
        OptionNumber.BLOCK1,
        OptionNumber.BLOCK2,
        OptionNumber.PROXY_URI,
        OptionNumber.PROXY_SCHEME,
    }
)
"""The critical options that an endpoint of this package handles itself, or that every application of it must.

If-Match and If-None-Match are not here: whoever does not evaluate the condition must reject the request.
"""


def _sorted_pairs(pairs: Iterable[OptionPair]) -> tuple[OptionPair, ...]:
    """Bring options into number order; those of one number keep theirs, which carries meaning (3.1)."""
    pairs = tuple(pairs)
    last = 0
    for pair in pairs:
        if pair[0] < last:
            return tuple(sorted(pairs, key=_number_of))
        last = pair[0]
    return pairs


def _number_of(pair: OptionPair) -> int:
    return pair[0]


@frozen(repr=False)
class Options:
    """The options of a message, immutable, in number order (RFC 7252 section 3.1).

    The values are raw bytes. What cannot be written (a number over 65535, a value that is too long) is
    reported when the message is encoded, with `OptionError`. The representation shows no value of an
    unregistered option and none of Uri-Query, since these may be credentials.

    Attributes:
        pairs: (number, value) in number order; those of one number in the order they were given.
    """

    pairs: tuple[OptionPair, ...] = field(default=(), converter=_sorted_pairs)

    @classmethod
    def of(cls, *pairs: OptionPair) -> Options:
        """Make options of (number, value) pairs, given in any order of numbers."""
        return cls(pairs)

    def get(self, number: int) -> bytes | None:
        """Return the first value of an option, or None."""
        for candidate, value in self.pairs:
            if candidate == number:
                return value
        return None

    def get_all(self, number: int) -> tuple[bytes, ...]:
        """Return all values of an option, in their order."""
        return tuple([value for candidate, value in self.pairs if candidate == number])

    def get_uint(self, number: int) -> int | None:
        """Return the first value of an option of format uint, or None."""
        value = self.get(number)
        return None if value is None else decode_uint(value)

    def with_option(self, number: int, value: bytes) -> Options:
        """Return a copy with one more value of an option, behind those that it has."""
        return Options((*self.pairs, (number, value)))

    def with_uint(self, number: int, value: int) -> Options:
        """Return a copy with one more value of an option of format uint.

        Raises:
            OptionError: The value is negative.
        """
        return self.with_option(number, encode_uint(value))

    def replacing(self, number: int, value: bytes) -> Options:
        """Return a copy in which the option occurs once, with this value."""
        return self.without(number).with_option(number, value)

    def without(self, *numbers: int) -> Options:
        """Return what is left without these options, itself if it has none of them."""
        kept = [pair for pair in self.pairs if pair[0] not in numbers]
        return self if len(kept) == len(self.pairs) else Options(tuple(kept))

    def cache_key(self, excluded: Collection[int] = ()) -> tuple[OptionPair, ...]:
        """Return what tells two requests of one method apart (RFC 7252 section 5.6).

        Args:
            excluded: Numbers to leave out, besides those that are NoCacheKey by their number.
        """
        return tuple(
            [pair for pair in self.pairs if pair[0] not in excluded and not is_no_cache_key(pair[0])]
        )

    def __iter__(self) -> Iterator[OptionPair]:
        return iter(self.pairs)

    def __contains__(self, number: object) -> bool:
        return number in [candidate for candidate, _ in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __repr__(self) -> str:
        return f"Options({', '.join(_describe(number, value) for number, value in self.pairs)})"


def _describe(number: int, value: bytes) -> str:
    definition = REGISTRY.get(number)
    if definition is None or number == OptionNumber.URI_QUERY:
        name = str(number) if definition is None else definition.name
        return f"{name}: <{len(value)} bytes>"
    if definition.format is OptionFormat.UINT:
        return f"{definition.name}: {decode_uint(value)}"
    if definition.format is OptionFormat.STRING:
        return f"{definition.name}: {value.decode('utf-8', 'backslashreplace')!r}"
    return f"{definition.name}: 0x{value.hex()}"


NO_OPTIONS: Final = Options()
"""The options of a message that has none."""


def option_name(number: int) -> str:
    """Return the registered name of an option, or its number."""
    definition = REGISTRY.get(number)
    return str(number) if definition is None else definition.name


_LEGAL: Final = {
    number: (definition.min_length, definition.max_length, definition.repeatable)
    for number, definition in REGISTRY.items()
}
"""What is looked at for each option of each message."""


def _is_illegal(number: int, value: bytes, previous: int) -> bool:
    """Whether an option has a length out of its range (RFC 7252 5.4.3) or is supernumerary (5.4.5)."""
    legal = _LEGAL.get(number)
    if legal is None:
        return False
    shortest, longest, repeatable = legal
    return not shortest <= len(value) <= longest or (number == previous and not repeatable)


def are_legal(options: Options, understood: Collection[int] = ()) -> bool:
    """Whether `unrecognized_critical` finds nothing, and `strip_unrecognized_elective` leaves them as they are."""
    previous = -1
    for number, value in options.pairs:
        if number & 0x01 and number not in RECOGNIZED_CRITICAL and number not in understood:
            return False
        if _is_illegal(number, value, previous):
            return False
        previous = number
    return True


def unrecognized_critical(options: Options, understood: Collection[int] = ()) -> int | None:
    """Find the first critical option for which the message must be rejected (RFC 7252 section 5.4.1).

    Args:
        options: Of the message.
        understood: Critical options that are recognized besides `RECOGNIZED_CRITICAL`.

    Returns:
        The number of the first critical option that is unknown, that has a length out of its range (section
        5.4.3) or that occurs again though it is not repeatable (section 5.4.5); None if there is none.
    """
    previous = -1
    for number, value in options.pairs:
        if number & 0x01:
            if number not in RECOGNIZED_CRITICAL and number not in understood:
                return number
            if _is_illegal(number, value, previous):
                return number
        previous = number
    return None


def strip_unrecognized_elective(options: Options) -> Options:
    """Drop the elective options that must be ignored (RFC 7252 sections 5.4.1, 5.4.3 and 5.4.5).

    Dropped are those whose length is out of its range and the further occurrences of those that are not
    repeatable. Options that the registry does not have stay: the application may know them.
    """
    kept: list[OptionPair] = []
    previous = -1
    for pair in options.pairs:
        number, value = pair
        if number & 0x01 or not _is_illegal(number, value, previous):
            kept.append(pair)
        previous = number
    return options if len(kept) == len(options.pairs) else Options(tuple(kept))
