# SPDX-License-Identifier: AGPL-3.0-or-later
"""Which of MSC3079's sticky options a request must carry (options 256 and 257), from the sender's side.

The server keeps the last access token and key version of an association, in the order in which *it* sees the
requests; datagrams may be lost and overtake each other. So an option is left out only once an answer has
shown that the server has it, and a second token is never sent while a request that left out the first may
still arrive: it would be run as another user's.
"""

from __future__ import annotations

import attrs

from synapse_lb.client.extension import Extensions, Words, X1Sender
from synapse_lb.coap.events import CoapRequest
from synapse_lb.msc3079.extension import X1, X1_WRITTEN
from synapse_lb.msc3079.options import ACCESS_TOKEN
from synapse_lb.msc3079.x1 import AliasBook


def _hidden(token: str | None) -> str:
    return "None" if token is None else "<token>"


@attrs.frozen
class Carried:
    """What one request carries.

    Attributes:
        token: the value of option 256; None leaves it out.
        key_version: the value of option 257; None leaves it out.
        relies: whether the request means a token that it does not carry.
        words: whether it is written in x1.
        aliases: those of the association, for x1.
        definitions: of aliases in the request; noted by whoever words it.
    """

    token: str | None = attrs.field(default=None, repr=_hidden)
    key_version: int | None = None
    relies: bool = False
    words: Words = Words.VERSION_1
    aliases: AliasBook | None = attrs.field(default=None, repr=False, eq=False)
    definitions: list[int] = attrs.field(factory=list, repr=False, eq=False)


class StickySender:
    """What the server of one association is known to have been told.

    Args:
        key_version: the CBOR key version to ask for; None asks for none.
        always: carry the token in every request, so that requests of several users can be mixed freely.
        extensions: what is known of the server's; None uses none.

    Attributes:
        x1: what the server was told of it.
    """

    def __init__(
        self, key_version: int | None, *, always: bool = False, extensions: Extensions | None = None
    ) -> None:
        self.x1 = X1Sender(extensions or Extensions(False))
        self._key_version = key_version
        self._key_version_known = key_version is None
        self._always = always
        self._token: str | None = None
        self._token_known = False
        # Requests under way, by whether they carry the token; and whether one was given up, which may
        # still reach the server.
        self._carrying = 0
        self._relying = 0
        self._carrying_lost = False
        self._relying_lost = False

    def can_take(self, token: str | None) -> bool:
        """Whether a request with this token may be sent now; if not, it needs an association of its own."""
        if token is None or self._always or self._token is None or token == self._token:
            return True
        return not self._relying and not self._relying_lost

    def prepare(self, token: str | None) -> Carried:
        """Decide what a request carries that is sent now; `can_take` must have allowed it.

        Args:
            token: whose request it is; None for one without a user, which carries no token.
        """
        words = self.x1.words()
        version = None if self._key_version_known or words.are_x1 else self._key_version
        carried = Carried(key_version=version, words=words, aliases=self.x1.aliases)
        if token is None:
            return carried
        if token != self._token:
            if self._carrying or self._carrying_lost:
                # Either token may arrive last.
                self._always = True
            if self._token is not None:
                self.x1.another_user()
            self._token = token
            self._token_known = False
        if self._token_known and not self._always:
            self._relying += 1
            return attrs.evolve(carried, relies=True)
        self._carrying += 1
        return attrs.evolve(carried, token=token)

    def answered(self, carried: Carried, *, unauthorized: bool = False) -> None:
        """Take note of the answer to a request.

        Args:
            carried: what `prepare` gave for it.
            unauthorized: whether the answer was 4.01, after which the server may have forgotten the token.
        """
        self.notified(carried)
        if unauthorized:
            self._token_known = False
        self._leave(carried)

    def notified(self, carried: Carried) -> None:
        """Take note of a notification: the server has the request's options, and further messages repeat them."""
        if carried.key_version is not None:
            self._key_version_known = True
        if carried.token is not None and carried.token == self._token:
            self._token_known = True

    def unsent(self, carried: Carried) -> None:
        """Take note that a request could not be sent after all."""
        self._leave(carried)

    def key_version_refused(self, carried: Carried) -> None:
        """Take note of a 4.02 to a request with option 257: it was not run, and the option is not sent again."""
        self._key_version_known = True
        self._leave(carried)

    def carry_always(self) -> None:
        """Leave no token out from now on, because somebody else uses the association too."""
        self._always = True

    def abandoned(self, carried: Carried) -> None:
        """Take note that no answer to a request will come; it may still reach the server."""
        self._leave(carried)
        if carried.relies:
            self._relying_lost = True
        elif carried.token is not None:
            self._carrying_lost = True

    def _leave(self, carried: Carried) -> None:
        if carried.relies:
            self._relying -= 1
        elif carried.token is not None:
            self._carrying -= 1


def unmixed(sticky: StickySender, request: CoapRequest) -> CoapRequest:
    """A request of the caller's own on an association that others use too.

    Returns:
        The request, which says that it is not of x1 where that is in force. If it has a token of its own, all
        others say theirs from now on.
    """
    if ACCESS_TOKEN in request.options:
        sticky.carry_always()
    if sticky.x1.book is None or X1 in request.options or X1_WRITTEN in request.options:
        return request
    return attrs.evolve(request, options=request.options.with_option(X1, b""))
