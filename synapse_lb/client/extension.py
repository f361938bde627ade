# SPDX-License-Identifier: AGPL-3.0-or-later
"""When requests are written in x1, the project's own format (docs/extensions.md), and what that takes.

The server must know before it can read a request of x1, and datagrams may be lost and overtake each other. So a request
of x1 says that it is one until the server has answered such a one; the option is critical, so that a server that does
not know it runs nothing. Where it is not known whether the server has x1, it is only told that an answer in x1 would be
welcome, in a request that any server understands.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from enum import Enum
from typing import Any, Final, Literal

import attrs

from synapse_lb.coap.events import CoapResponse
from synapse_lb.coap.numbers import Code, OptionNumber, is_success
from synapse_lb.msc3079.x1 import AliasBook, Side

Wish = Literal["auto", "known"] | bool
"""Whether x1 is wanted: `auto` where the server says in /versions that it has it, `known` says so in its place, True
finds out with the first request, False never."""

WISHES: Final = ("auto", "known", True, False)

_VERSIONS_KEY: Final = "org.matrix.msc3079.low_bandwidth"


class Words(Enum):
    """How a request is written."""

    VERSION_1 = "version 1"
    OFFER = "version 1, and an answer in x1 is welcome"
    ANNOUNCE = "x1, as it says itself"
    X1 = "x1"

    @property
    def are_x1(self) -> bool:
        """Whether the request itself is of x1."""
        return self in (Words.ANNOUNCE, Words.X1)


@attrs.define
class Extensions:
    """What is known of a server's extensions, by all associations of one client.

    Attributes:
        wish: whether x1 is wanted.
        speaks_x1: whether the server has it; None as long as it is not known.
    """

    wish: Wish
    speaks_x1: bool | None = None

    def __attrs_post_init__(self) -> None:
        if self.wish == "known":
            self.speaks_x1 = True

    def read_versions(self, body: Any) -> None:
        """Take note of what `/versions` says; nothing else has its key."""
        said = body.get(_VERSIONS_KEY) if isinstance(body, dict) else None
        if isinstance(said, dict) and self.wish == "auto" and self.speaks_x1 is None:
            self.speaks_x1 = said.get("x1") == 1


class X1Sender:
    """What the server of one association has been told of x1.

    Args:
        extensions: what is known of the server.

    Attributes:
        aliases: those of the association.
    """

    def __init__(self, extensions: Extensions) -> None:
        self.aliases: Final = AliasBook(Side.CLIENT)
        self._extensions = extensions
        self._told = False
        self._knows = False
        self._in_force: Callable[[], None] | None = None

    @property
    def book(self) -> AliasBook | None:
        """The aliases for answers, whose bodies may be of x1 if they have no Content-Format; None if none can be."""
        return self.aliases if self._told else None

    def when_in_force(self, call: Callable[[], None]) -> None:
        """Have this called when the server has answered in x1: then it has all that belongs to it."""
        self._in_force = call

    def words(self) -> Words:
        """How a request is written that is sent now."""
        words = self._words()
        self._told = self._told or words is not Words.VERSION_1
        return words

    def _words(self) -> Words:
        extensions = self._extensions
        if extensions.wish is False:
            return Words.VERSION_1
        if self._knows:
            return Words.X1
        if extensions.speaks_x1:
            return Words.ANNOUNCE
        undecided = extensions.wish is True and extensions.speaks_x1 is None
        return Words.OFFER if undecided else Words.VERSION_1

    def answered(self, words: Words, definitions: Collection[int], response: CoapResponse) -> None:
        """Take note of an answer, or of a notification.

        Args:
            words: of the request.
            definitions: of aliases, in the request.
            response: to it.
        """
        written = OptionNumber.CONTENT_FORMAT not in response.options and bool(response.payload)
        if words is Words.OFFER and self._extensions.speaks_x1 is None and response.payload:
            self._extensions.speaks_x1 = written and is_success(response.code)
        if words is Words.OFFER and written and is_success(response.code):
            self._note_in_force()
        if not words.are_x1:
            return
        if is_success(response.code):
            self._knows = True
            self.aliases.confirm(definitions)
        elif written:
            # The endpoint's own errors, before the gateway has seen the request, have no payload.
            self._knows = True
        if self._knows:
            self._note_in_force()
        if response.code == Code.BAD_REQUEST:
            # Perhaps the server does not know an alias that it should, or not for this user.
            self.aliases.forget_known()
            self.aliases.forget_peers()

    def another_user(self) -> None:
        """Requests are another user's from now on, for whom the server does not know the aliases so far."""
        self.aliases.forget_known()
        self.aliases.forget_peers()

    def _note_in_force(self) -> None:
        if self._in_force is not None:
            self._in_force()

    def unreadable(self) -> None:
        """Take note of an answer that cannot be read: perhaps the server takes an alias for known that is not.

        The next request says again that it is of x1; then the server defines its aliases anew.
        """
        self._knows = False

    def refused(self, words: Words, response: CoapResponse) -> bool:
        """Take note of a 4.02 to a request that said that it is of x1.

        Returns:
            Whether it is one: the request was not run, and other words are there for it.
        """
        if words is not Words.ANNOUNCE or response.code != Code.BAD_OPTION:
            return False
        self._extensions.speaks_x1 = False
        return True
