# SPDX-License-Identifier: AGPL-3.0-or-later
"""Aliases: a room id is sent once per association, and then a small number (docs/extensions.md, "Aliases").

One `AliasBook` at each end of an association. A side defines an alias by sending the number with the text,
as often as need be; it refers to it by the number alone once the peer is known to have it. A definition never
changes, so it does not matter in which order messages arrive, or how often.

Several users may share an association. The numbers are common to them, but the server resolves a number for those
alone who were in the conversation when it was defined or used (`AliasBook.for_user`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from copy import copy
from enum import IntEnum
from types import MappingProxyType
from typing import Final

import attrs

from synapse_lb.msc3079.x1.errors import AliasError, UnknownAliasError

MAX_ALIASES: Final = 256
"""Numbers that there are, both sides' together: what one byte can say."""

MAX_ALIAS_LENGTH: Final = 255
"""Bytes of UTF-8 that an alias may stand for: as long as an id of Matrix may be."""

MAX_USERS: Final = 8
"""Users of one association whose numbers are remembered; the one that was heard of longest ago is forgotten first, and
its aliases have to be defined again."""


class Side(IntEnum):
    """Whose book it is; the value is the parity of the numbers that this side gives."""

    CLIENT = 0
    SERVER = 1


class AliasKind(IntEnum):
    """What an alias stands for: each kind has its own share of the numbers of a side."""

    ROOM = 0
    USER = 1
    DEVICE = 2
    SESSION = 3
    """A session of end-to-end encryption, or the key of its sender."""


SHARES: Final[Mapping[AliasKind, int]] = MappingProxyType(
    {AliasKind.ROOM: 56, AliasKind.USER: 32, AliasKind.DEVICE: 8, AliasKind.SESSION: 32}
)
"""How many of a side's numbers may go to each kind: a list of devices must not leave none for rooms."""


@attrs.define
class AliasCounters:
    """What a book has seen.

    Attributes:
        defined: Aliases that this side has given.
        learned: Aliases that the peer has given.
        refused: Texts that got none, because their share of the numbers was used up.
    """

    defined: int = 0
    learned: int = 0
    refused: int = 0


def _fits(text: str) -> bool:
    try:
        return len(text) <= MAX_ALIAS_LENGTH and len(text.encode()) <= MAX_ALIAS_LENGTH
    except UnicodeEncodeError:  # a lone surrogate
        return False


class AliasBook:
    """The aliases of one association, at one end.

    Bounded by the numbers that there are: `MAX_ALIASES`, of which each side gives one half. A full book defines
    no more; what has no alias is sent as text.

    Args:
        side: Which end this is.
    """

    def __init__(self, side: Side) -> None:
        self._side = side
        self._texts: dict[int, str] = {}
        self._own: dict[str, int] = {}
        self._peers: dict[str, int] = {}
        self._known: set[int] = set()
        self._used = dict.fromkeys(AliasKind, 0)
        self._public: set[int] = set()
        self._users: OrderedDict[str, AliasBook] = OrderedDict()
        self._seen: set[int] | None = None  # by the user that this is for; None where nobody is told apart
        self.counters = AliasCounters()

    def for_user(self, user: str | None) -> AliasBook:
        """The same book, in which only those aliases are found that this user has defined or was sent.

        What was defined while nobody had said who it is, everybody finds.

        Args:
            user: who it is, by the access token; None for nobody in particular.
        """
        if user is None:
            return self._copy(self._public)
        if user not in self._users:
            self._users[user] = self._copy(set())
            if len(self._users) > MAX_USERS:
                self._users.popitem(last=False)
        self._users.move_to_end(user)
        return self._users[user]

    def _copy(self, seen: set[int]) -> AliasBook:
        book = copy(self)  # of all but what was seen there is one
        book._seen = seen
        return book

    def _saw(self, number: int) -> int:
        if self._seen is not None:
            self._seen.add(number)
        return number

    def __len__(self) -> int:
        """Aliases that it holds."""
        return len(self._texts)

    # Writing

    def reference(self, text: str) -> int | None:
        """The number that the peer is known to have for a text, or None."""
        number = self._peers.get(text)
        if number is None:
            number = self._own.get(text)
            if number is None or number not in self._known:
                return None
        return self._saw(number)

    def definition(self, text: str, kind: AliasKind) -> int | None:
        """The number under which a text is to be defined to the peer; a new one if it has none yet.

        Returns:
            A number of this side, always the same for a text; None if there is none left, or the text is too long.
        """
        number = self._own.get(text)
        if number is not None:
            return self._saw(number)
        if not _fits(text):
            return None
        if self._used[kind] >= SHARES[kind]:
            self.counters.refused += 1
            return None
        number = 2 * len(self._own) + self._side
        self._used[kind] += 1
        self._own[text] = number
        self._texts[number] = text
        self.counters.defined += 1
        return self._saw(number)

    def confirm(self, numbers: Iterable[int]) -> None:
        """The peer has read a message that defined these numbers: from now on they may stand alone.

        Args:
            numbers: `Encoded.definitions` of that message.
        """
        for number in numbers:
            if number in self._texts:
                self._known.add(number)

    def forget_known(self) -> None:
        """Take nothing of one's own for known any more: it will be defined again, under the same numbers."""
        self._known.clear()

    def forget_peers(self) -> None:
        """Refer to nothing any more that the peer has defined, until it sends it again.

        It may have done so for another user of the association.
        """
        self._peers.clear()

    # Reading

    def check(self, number: int, text: str) -> None:
        """Whether the peer may define this.

        Raises:
            AliasError: it may not.
        """
        if not 0 <= number < MAX_ALIASES or number & 1 == self._side:
            raise AliasError(
                "A definition of an alias with a number that is not the sender's", well_formed=True
            )
        if self._texts.get(number, text) != text:
            raise AliasError("A second definition of an alias", well_formed=True)

    def learn(self, definitions: Mapping[int, str]) -> None:
        """Remember what the peer has defined.

        Raises:
            AliasError: something of it cannot be; nothing is remembered then.
        """
        for number, text in definitions.items():
            self.check(number, text)
        for number, text in definitions.items():
            if number not in self._texts:
                self._texts[number] = text
                self.counters.learned += 1
            self._peers[text] = self._saw(number)

    def resolve(self, number: int) -> str:
        """The text of an alias that the peer has used. One of our own is then known to the peer.

        Raises:
            UnknownAliasError: there is none.
        """
        text = self._texts.get(number)
        hidden = self._seen is not None and number not in self._seen and number not in self._public
        if text is None or hidden:
            raise UnknownAliasError(number)
        if number & 1 == self._side:
            self._known.add(number)
        return text
