# SPDX-License-Identifier: AGPL-3.0-or-later
"""What a test asks for, in the words of HTTP, and whether CoAP has words for it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, Final

import attrs
from synapse.http.site import SynapseRequest

from synapse_lb.homeserver import answers
from synapse_lb.msc3079.codes import METHOD_TO_CODE
from synapse_lb.msc3079.messages import NO_BODY
from synapse_lb.testing.synapse.errors import NotOverCoap, Reason
from synapse_lb.testing.synapse.site import is_served

Text = str | bytes
Header = tuple[Text, Text]

JSON: Final = b"application/json"
FORM: Final = b"application/x-www-form-urlencoded"

_BEARER: Final = b"bearer "

_SAID_OTHERWISE: Final = frozenset({b"content-length", b"content-type"})
"""Headers whose meaning CoAP has by itself."""


@attrs.frozen
class Asked:
    """A request.

    Attributes:
        method: HTTP method.
        target: percent-encoded path and query.
        body: bytes; empty for none.
        access_token: of the user, or None.
        content_type: of the body.
        headers: further ones.
        federation_origin: the server that it pretends to come from, or None.
        request_class: what Synapse is to make of it.
    """

    method: str
    target: bytes
    body: bytes = b""
    access_token: str | None = None
    content_type: bytes = JSON
    headers: tuple[tuple[bytes, bytes], ...] = ()
    federation_origin: bytes | None = None
    request_class: type[Any] = SynapseRequest

    def http_headers(self) -> Iterator[tuple[bytes, bytes]]:
        """The headers that it has over HTTP."""
        if not any(name.lower() == b"content-length" for name, _ in self.headers):
            yield b"Content-Length", b"%d" % len(self.body)
        if self.access_token:
            yield b"Authorization", b"Bearer " + self.access_token.encode("ascii")
        if self.federation_origin is not None:
            yield b"Authorization", b"X-Matrix origin=%s,key=,sig=" % self.federation_origin
        if self.body:
            yield b"Content-Type", self.content_type
        yield from self.headers

    def token(self) -> str | None:
        """The access token that it carries, as a parameter or as a header.

        Raises:
            NotOverCoap: it names its user in another way, or carries a header for which CoAP has no option.
        """
        token = self.access_token or None
        if self.federation_origin is not None:
            raise NotOverCoap(Reason.LOGIN, "an X-Matrix signature")
        for name, value in self.headers:
            if name.lower() == b"authorization":
                if not value.lower().startswith(_BEARER):
                    raise NotOverCoap(Reason.LOGIN, f"Authorization: {value.split()[0].decode()}")
                token = value[len(_BEARER) :].decode("ascii")
            elif name.lower() not in _SAID_OTHERWISE:
                raise NotOverCoap(Reason.HEADER, name.decode("ascii"))
        return token

    def json(self) -> Any:
        """The body as a JSON value; `NO_BODY` for none.

        Raises:
            NotOverCoap: it says that it is something else.
            ValueError: it says that it is JSON, and is none.
        """
        if not self.body:
            return NO_BODY
        given = [value for name, value in self.headers if name.lower() == b"content-type"]
        content_type = (given[0] if given else self.content_type).partition(b";")[0].strip().lower()
        if content_type != JSON:
            raise NotOverCoap(Reason.BODY, content_type.decode("ascii"))
        return json.loads(self.body, parse_constant=_refuse, object_pairs_hook=_without_duplicates)

    def check(self) -> None:
        """See to it that CoAP can ask this.

        Raises:
            NotOverCoap: why it cannot.
        """
        if not is_served(self.target):
            raise NotOverCoap(Reason.API, self.target.partition(b"?")[0].decode("ascii"))
        if answers.is_media(self.target):
            raise NotOverCoap(Reason.ANSWER, "media")
        if self.method not in METHOD_TO_CODE:
            raise NotOverCoap(Reason.METHOD, self.method)
        if self.request_class is not SynapseRequest:
            raise NotOverCoap(Reason.REQUEST_CLASS, self.request_class.__name__)


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON")


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is there twice")
    return value


def asked(
    method: Text,
    path: Text,
    content: Text | dict[str, Any],
    *,
    shorthand: bool,
    content_type: bytes | None,
    content_is_form: bool,
    custom_headers: Iterable[Header] | None,
    **others: Any,
) -> Asked:
    """Read the parameters of `make_request`."""
    target = path if isinstance(path, bytes) else path.encode("ascii")
    if shorthand and not target.startswith((b"/_matrix", b"/_synapse")):
        target = b"/_matrix/client/r0/" + target.removeprefix(b"/")
    if not target.startswith(b"/"):
        target = b"/" + target
    if isinstance(content, dict):
        content = json.dumps(content)
    return Asked(
        method.decode("ascii") if isinstance(method, bytes) else method,
        target,
        content.encode("utf-8") if isinstance(content, str) else content,
        content_type=content_type or (FORM if content_is_form else JSON),
        headers=tuple((_bytes(name), _bytes(value)) for name, value in custom_headers or ()),
        **others,
    )


def _bytes(text: Text) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8")
