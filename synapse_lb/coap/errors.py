# SPDX-License-Identifier: AGPL-3.0-or-later
"""The typed errors of the CoAP endpoint.

Three families say whose doing it was: `LocalError` (this program asked for what cannot be done),
`RemoteError` (the peer sent what must not be sent) and `DeliveryError` (the network or the peer's absence).
Where the protocol defines a response to the error, `wire_code` carries it.
"""

from __future__ import annotations

from synapse_lb.coap.numbers import Code, Type, code_to_text


class CoapError(Exception):
    """Base of all errors of `synapse_lb.coap`.

    Attributes:
        wire_code: The response code that tells the peer about it, or None where the protocol has none.
    """

    wire_code: int | None = None


class LocalError(CoapError):
    """This side asked for something that CoAP, or a limit of its own, does not allow."""


class RemoteError(CoapError):
    """The peer broke the protocol, or asked for more than it may have."""


class DeliveryError(CoapError):
    """A message did not get through, or its answer did not come back."""


class OptionError(LocalError):
    """An option number or option value that has no wire form (RFC 7252 sections 3.1 and 3.2)."""

    wire_code = Code.INTERNAL_SERVER_ERROR


class MessageError(LocalError):
    """A message with no wire form: its token, its id, or its mix of type, code and content (section 4.3)."""

    wire_code = Code.INTERNAL_SERVER_ERROR


class MessageTooLarge(LocalError):
    """A message that does not fit in one datagram to this peer, even block by block (RFC 7252 section 4.6).

    Attributes:
        size: Bytes that it would take.
        limit: Bytes that the peer can be sent.
    """

    wire_code = Code.INTERNAL_SERVER_ERROR

    def __init__(self, size: int, limit: int) -> None:
        super().__init__(f"a message of {size} bytes exceeds the {limit} bytes that fit in a datagram")
        self.size = size
        self.limit = limit


class ExchangeUnknown(LocalError):
    """The exchange has ended: answered, cancelled, failed, or its peer has gone."""

    def __init__(self, exchange: int) -> None:
        super().__init__(f"exchange {exchange} is not open")
        self.exchange = exchange


class NotObserved(LocalError):
    """A notification, or the end of an observation, for an exchange that is none (RFC 7641 section 4.1)."""

    def __init__(self, exchange: int) -> None:
        super().__init__(f"exchange {exchange} is no observation")
        self.exchange = exchange


class NotificationInFlight(LocalError):
    """The last notification of the observation is not delivered yet (RFC 7641 section 4.5.1)."""

    def __init__(self, exchange: int) -> None:
        super().__init__(f"the last notification of exchange {exchange} is not delivered yet")
        self.exchange = exchange


class TooManyExchanges(LocalError):
    """The limit of open exchanges with one peer is reached (`Limits.max_exchanges_per_peer`)."""

    wire_code = Code.SERVICE_UNAVAILABLE


class MessageFormatError(RemoteError):
    """A datagram that is no CoAP message (RFC 7252 section 3), or has a code that its type may not (4.3).

    A Confirmable one is answered with a Reset, any other is ignored (sections 4.2 and 4.3); therefore the two
    fields of the header that a Reset needs are kept. A message of an unknown version must be ignored silently
    (section 3), so its fields are not read.

    Attributes:
        reason: What is wrong with it.
        type: The message's type, or None if there was no header of version 1.
        message_id: The message's id, or None likewise.
    """

    def __init__(self, reason: str, *, type: Type | None = None, message_id: int | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.type = type
        self.message_id = message_id


class UnrecognizedOption(RemoteError):
    """A critical option that is unknown here, or may not be where it is (RFC 7252 section 5.4.1).

    Attributes:
        number: The option's number.
    """

    wire_code = Code.BAD_OPTION

    def __init__(self, number: int) -> None:
        super().__init__(f"critical option {number} is not recognized")
        self.number = number


class MethodUnknown(RemoteError):
    """A request with a method that is not registered (RFC 7252 section 5.8)."""

    wire_code = Code.METHOD_NOT_ALLOWED


class BlockOptionError(RemoteError):
    """A Block1 or Block2 value that means nothing: SZX 7, or more than three bytes (RFC 7959 section 2.2)."""

    wire_code = Code.BAD_REQUEST


class BlockwiseError(RemoteError):
    """A block-wise transfer that cannot go on (RFC 7959 sections 2.4, 2.5 and 2.9).

    Args:
        reason: What is wrong with it.
        wire_code: The response that says so; 4.08 is for blocks that are missing.
    """

    def __init__(self, reason: str, wire_code: int | None = Code.REQUEST_ENTITY_INCOMPLETE) -> None:
        super().__init__(reason)
        self.wire_code = wire_code


class BodyTooLarge(RemoteError):
    """A body that grew over its limit while it was put together (RFC 7959 section 2.9.3).

    Attributes:
        limit: Bytes that would be accepted; the value of the Size1 option of the 4.13 response.
    """

    wire_code = Code.REQUEST_ENTITY_TOO_LARGE

    def __init__(self, limit: int) -> None:
        super().__init__(f"the body exceeds {limit} bytes")
        self.limit = limit


class ProxyingNotSupported(RemoteError):
    """A request with Proxy-Uri or Proxy-Scheme: this endpoint is no forward-proxy (RFC 7252 5.10.2)."""

    wire_code = Code.PROXYING_NOT_SUPPORTED


class UnexpectedResponse(RemoteError):
    """A response that a request like this cannot have, so that nothing can be made of it.

    Attributes:
        code: The response's code.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"{code_to_text(code)}: {reason}")
        self.code = code


class RequestTimedOut(DeliveryError):
    """No acknowledgement after all retransmissions, or no response in time (RFC 7252 4.2, 5.2.2)."""


class RequestReset(DeliveryError):
    """The peer rejected the request with a Reset (RFC 7252 section 4.2)."""


class PingGaveWay(DeliveryError):
    """A ping was given up for a message that waited for NSTART, and whose outcome tells as much (RFC 7252 4.7)."""


class PeerGone(DeliveryError):
    """The security association with the peer has ended, and everything that was under way with it."""
