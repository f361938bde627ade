# SPDX-License-Identifier: AGPL-3.0-or-later
"""Server role: what the options of a request say of it and of how its response is to come; those of a refusal."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from attrs import frozen

from synapse_lb.coap.block import Block
from synapse_lb.coap.blockwise import TRANSFER_OPTIONS, read_block
from synapse_lb.coap.errors import (
    BodyTooLarge,
    MethodUnknown,
    ProxyingNotSupported,
    RemoteError,
    TooManyExchanges,
    UnrecognizedOption,
)
from synapse_lb.coap.numbers import Code, OptionNumber, code_to_text
from synapse_lb.coap.options import Options, are_legal, strip_unrecognized_elective, unrecognized_critical
from synapse_lb.coap.qblock import QBlocks

_PROXYING: Final = frozenset({OptionNumber.PROXY_URI, OptionNumber.PROXY_SCHEME})
_SPECIAL: Final = frozenset({*TRANSFER_OPTIONS, OptionNumber.OBSERVE, OptionNumber.NO_RESPONSE})

METHODS: Final = frozenset(range(Code.GET, Code.IPATCH + 1))
"""The methods that are handed to the application; others get 4.05 (RFC 7252 section 5.8)."""


OVERLOAD_MAX_AGE: Final = 5
"""s: Max-Age of the 5.03 that says that a peer has too many open requests (RFC 7252 section 5.9.3.4)."""


def recognized(options: Options, understood: Collection[int]) -> Options:
    """Return the options of a request without those that must be ignored (RFC 7252 section 5.4.1).

    Args:
        options: Of its message.
        understood: Critical options that the application knows.

    Raises:
        UnrecognizedOption: One is critical, and not known or not as it has to be (4.02).
    """
    if are_legal(options, understood):
        return options
    number = unrecognized_critical(options, understood)
    if number is not None:
        raise UnrecognizedOption(number)
    return strip_unrecognized_elective(options)


def is_ordinary(options: Options) -> bool:
    """Whether all options of a request are of the request itself, as those of most are: no block, no observation."""
    return _SPECIAL.isdisjoint([number for number, _ in options.pairs])


def refuse_unserved(code: int, options: Options) -> None:
    """Look whether a request is one for an application of this package.

    Raises:
        ProxyingNotSupported: It is for another server (RFC 7252 section 5.10.2: 5.05).
        MethodUnknown: Its method is none of `METHODS` (section 5.8: 4.05).
    """
    if not _PROXYING.isdisjoint([number for number, _ in options.pairs]):
        raise ProxyingNotSupported("no forward-proxy")
    if code not in METHODS:
        raise MethodUnknown(f"method {code_to_text(code)} is not known")


@frozen
class Asked:
    """How the response to a request is to come.

    Attributes:
        block1: The option to be repeated in the response, if the request came in blocks.
        q_block: What of the response the client wants at first; None if it did not say that it knows Q-Block2.
        szx: Size exponent of the largest block that the client wants; None if it did not say.
        wants_size: Whether the client asks for the size of the body (RFC 7959 section 4).
        registers: Whether it may be answered with notifications.
        no_response: Value of the No-Response option (RFC 7967 section 2); 0 to send all responses.
    """

    block1: Block | None = None
    q_block: Block | None = None
    szx: int | None = None
    wants_size: bool = False
    registers: bool = False
    no_response: int = 0

    @classmethod
    def by(cls, options: Options, block1: Block | None, *, registers: bool) -> Asked:
        """Read the options.

        Args:
            options: Of the message that completed the request.
            block1: See above.
            registers: See above.

        Raises:
            RemoteError: One of them makes no sense.
        """
        q_blocks = QBlocks.read(options)
        opening = None if q_blocks is None else q_blocks.opening
        block2 = read_block(options, OptionNumber.BLOCK2) or opening
        return cls(
            block1=block1,
            # Notifications go in Block2: their further blocks are fetched one by one, as the peer processes them.
            q_block=None if registers else opening,
            szx=None if block2 is None else block2.szx,
            wants_size=OptionNumber.SIZE2 in options,
            registers=registers,
            no_response=options.get_uint(OptionNumber.NO_RESPONSE) or 0,
        )


PLAINLY: Final = Asked()
"""As most requests ask."""


def options_of_refusal(error: RemoteError | TooManyExchanges) -> Options:
    """Return the options of the answer to a request that is refused."""
    if isinstance(error, TooManyExchanges):
        return Options().with_uint(OptionNumber.MAX_AGE, OVERLOAD_MAX_AGE)
    if isinstance(error, BodyTooLarge):
        return Options().with_uint(OptionNumber.SIZE1, error.limit)
    return Options()
