# SPDX-License-Identifier: AGPL-3.0-or-later
"""What an observation asks for: the request in its several wordings, and how its answers are read."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, Final, Protocol

import attrs

from synapse_lb.client.errors import BadResponse
from synapse_lb.client.sticky import Carried
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.observe import DEREGISTER, REGISTER
from synapse_lb.coap.options import encode_uint
from synapse_lb.msc3079.mapping import NO_BODY, MappingError, MatrixResponse, decode_response

if TYPE_CHECKING:
    from synapse_lb.client.dialect import Dialect
    from synapse_lb.client.extension import X1Sender

Pairs = tuple[tuple[str, str], ...]

FULL_STATE: Final = ("full_state", "true")
"""The parameter of /sync that asks for all there is."""

MISSING_TOKEN: Final = "M_MISSING_TOKEN"
"""The errcode of a request whose user the server does not know; it has not run it."""

SYNC_CODE_PATH: Final = "/7"
"""MSC3079's code for /sync."""


@attrs.frozen
class Cursor:
    """How the place in the stream of events is named.

    Attributes:
        parameter: query parameter of the request from which on events are wanted.
        field: key of the answer that names the place after it.
    """

    parameter: str
    field: str


SYNC: Final = Cursor("since", "next_batch")
"""Of `/sync` (Matrix client-server API)."""

SLIDING_SYNC: Final = Cursor("pos", "pos")
"""Of simplified sliding sync (MSC4186)."""


def cursor_of(path: str) -> Cursor | None:
    """How the place is named at a path; None if it is no sync.

    Args:
        path: from its leading slash, without a query.
    """
    path = path.rstrip("/")
    if path.endswith("simplified_msc3575/sync"):
        return SLIDING_SYNC
    return SYNC if path.endswith("/sync") or path == SYNC_CODE_PATH else None


@attrs.frozen
class Asking:
    """What changes from one registration to the next.

    Attributes:
        since: the place after what was processed last; None from the beginning.
        first: whether nothing was processed yet.
        timeout: seconds that a server which does not notify may hold the answer back; None says nothing of it.
        observe: value of the Observe option; None makes it a plain request.
    """

    since: str | None
    first: bool = True
    timeout: float | None = None
    observe: int | None = REGISTER

    @classmethod
    def farewell(cls, since: str | None) -> Asking:
        """A request that ends a registration, and whose answer nobody wants."""
        return cls(since, first=False, timeout=0.0, observe=DEREGISTER)

    def changes(self, given: Collection[str], cursor: Cursor | None) -> tuple[set[str], Pairs]:
        """What becomes of the query.

        Args:
            given: names of the parameters that there are.
            cursor: how places are named; None leaves the query as it is.

        Returns:
            The names of the parameters that are left out, and the parameters that are added.
        """
        if cursor is None:
            return set(), ()
        left_out = {cursor.parameter}
        if not self.first:
            # The whole state was delivered by the first answer.
            left_out.add("full_state")
        added = [] if self.since is None else [(cursor.parameter, self.since)]
        if self.timeout is not None and ("timeout" not in given or self.observe == DEREGISTER):
            left_out.add("timeout")
            added.append(("timeout", str(round(self.timeout * 1000))))
        return left_out, tuple(added)


class Subject(Protocol):
    """What is observed."""

    @property
    def cursor(self) -> Cursor | None:
        """How places in it are named, or None if it has none."""

    def fetches_first(self, since: str | None) -> bool:
        """Whether the first answer is fetched with a plain request, because it may be large.

        Args:
            since: the place that is asked for.
        """

    def request(self, asking: Asking, carried: Carried) -> CoapRequest:
        """The request for a registration.

        Raises:
            BadRequest: it cannot be sent over CoAP.
        """

    def read(self, response: CoapResponse, x1: X1Sender | None) -> Any:
        """What the handler gets; `NO_BODY` for a notification that says nothing.

        Args:
            response: whole.
            x1: what its association uses of it.

        Raises:
            BadResponse: it cannot be read.
        """

    def place(self, read: Any) -> str | None:
        """The place after what `read` gave."""


@attrs.frozen
class MatrixSubject:
    """A resource of Matrix; the handler gets the body as a JSON value.

    Attributes:
        path: percent-encoded, from its leading slash.
        query: parameters, not percent-encoded.
        json: the body, which makes it a FETCH (RFC 8132 section 2) in place of a POST; `NO_BODY` for a GET.
        cursor: how places in it are named.
        dialect: words the request.
        initial: fetch an initial sync, or one with the full state, with a plain request: many blocks of that may be
            under way at once (RFC 9177), but each block of a notification is asked for.
    """

    path: str
    query: Pairs
    json: Any
    cursor: Cursor | None
    dialect: Dialect
    initial: bool = False

    def fetches_first(self, since: str | None) -> bool:
        """See `Subject`."""
        return self.initial and (since is None or FULL_STATE in self.query)

    @property
    def method(self) -> str:
        """What asks for it over HTTP."""
        return "GET" if self.json is NO_BODY else "POST"

    def parameters(self, asking: Asking) -> Pairs:
        """The query of a request."""
        left_out, added = asking.changes([name for name, _ in self.query], self.cursor)
        return (*(pair for pair in self.query if pair[0] not in left_out), *added)

    def request(self, asking: Asking, carried: Carried) -> CoapRequest:
        """See `Subject`."""
        request = self.dialect.request(self.method, self.path, self.parameters(asking), self.json, carried)
        if asking.observe is None:
            return attrs.evolve(request, q_block=True)
        code = Code.FETCH if request.code == Code.POST else request.code
        options = request.options.with_uint(OptionNumber.OBSERVE, asking.observe)
        return attrs.evolve(request, code=code, options=options)

    def read(self, response: CoapResponse, x1: X1Sender | None) -> Any:
        """See `Subject`."""
        return decoded(response, x1).body

    def place(self, read: Any) -> str | None:
        """See `Subject`."""
        if self.cursor is None:
            return None
        place = read.get(self.cursor.field) if isinstance(read, dict) else None
        if not _is_place(place):
            raise BadResponse(f"the answer has no {self.cursor.field}")
        return str(place)


@attrs.frozen
class RawSubject:
    """Any CoAP resource; the handler gets the response itself.

    Attributes:
        template: the request, with all its options but Observe.
    """

    template: CoapRequest

    @property
    def cursor(self) -> Cursor | None:
        """See `Subject`."""
        path = self.template.options.get_all(OptionNumber.URI_PATH)
        return cursor_of("/" + "/".join(segment.decode("utf-8", "replace") for segment in path))

    @property
    def since(self) -> str | None:
        """The place that the request names itself."""
        cursor = self.cursor
        for argument in self.template.options.get_all(OptionNumber.URI_QUERY):
            name, _, value = argument.partition(b"=")
            if cursor is not None and name == cursor.parameter.encode():
                return value.decode("utf-8", "replace")
        return None

    def fetches_first(self, since: str | None) -> bool:
        """See `Subject`. The request is sent as it is given."""
        return False

    def request(self, asking: Asking, carried: Carried) -> CoapRequest:
        """See `Subject`."""
        assert asking.observe is not None
        arguments = [(_name(each), each) for each in self.template.options.get_all(OptionNumber.URI_QUERY)]
        left_out, added = asking.changes([name for name, _ in arguments], self.cursor)
        options = self.template.options.without(OptionNumber.URI_QUERY)
        for name, argument in arguments:
            if name not in left_out:
                options = options.with_option(OptionNumber.URI_QUERY, argument)
        for name, value in added:
            options = options.with_option(OptionNumber.URI_QUERY, f"{name}={value}".encode())
        options = options.replacing(OptionNumber.OBSERVE, encode_uint(asking.observe))
        return attrs.evolve(self.template, options=options)

    def read(self, response: CoapResponse, x1: X1Sender | None) -> Any:
        """See `Subject`."""
        return response

    def place(self, read: Any) -> str | None:
        """See `Subject`."""
        if self.cursor is None:
            return None
        body = decoded(read).body
        place = body.get(self.cursor.field) if isinstance(body, dict) else None
        return str(place) if _is_place(place) else None


def _is_place(value: Any) -> bool:
    """Whether it can be sent back: JSON may have texts that are no Unicode."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _name(argument: bytes) -> str:
    """The name of a Uri-Query argument; bytes that are no text are no name of ours."""
    return argument.partition(b"=")[0].decode("utf-8", "replace")


def decoded(response: CoapResponse, x1: X1Sender | None = None) -> MatrixResponse:
    """The Matrix answer that a response carries.

    Args:
        response: whole.
        x1: what its association uses of it.

    Raises:
        BadResponse: it carries none.
    """
    try:
        book = None if x1 is None else x1.book
        return decode_response(response.code, response.options, response.payload, book=book)
    except MappingError as error:
        if x1 is not None:
            x1.unreadable()
        raise BadResponse(error.message, response.code) from error


Handler = Callable[[Any], Any]
"""Takes what was read; returns None, or an awaitable that fires when it has been processed."""
