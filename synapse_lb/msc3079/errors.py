# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can go wrong in this room. Each error of a peer carries the answer that it gets."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from synapse_lb.msc3079.messages import ReplyFormat


class MscError(Exception):
    """Base of the errors of this room."""


class CborError(MscError):
    """A body that is not CBOR, or CBOR that stands for no JSON value.

    Attributes:
        well_formed: True if the bytes are CBOR (RFC 8949) but say something that JSON cannot.
    """

    def __init__(self, message: str, *, well_formed: bool = False) -> None:
        super().__init__(message)
        self.well_formed = well_formed


class CompressionError(MscError):
    """A body that cannot be decompressed.

    Attributes:
        too_large: True if more comes out of it than is allowed.
    """

    def __init__(self, message: str, *, too_large: bool = False) -> None:
        super().__init__(message)
        self.too_large = too_large


class UnknownPathError(MscError):
    """A path code with the wrong number of parameters."""


class MappingError(MscError):
    """A message that cannot be mapped between CoAP and Matrix.

    On a server it is the answer to the request (`mapping.encode_error`). On a client `code` says what
    is at fault: 4.00 a request that cannot be sent over CoAP, 5.02 an answer that cannot be read.

    Attributes:
        code: CoAP response code.
        errcode: Matrix error code.
        message: For people; never holds a token or a part of a body.
        reply: How the requester wants its answer, as far as that was known.
    """

    def __init__(self, code: int, errcode: str, message: str, reply: ReplyFormat | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.errcode = errcode
        self.message = message
        self.reply = reply

    def __repr__(self) -> str:
        return f"MappingError(code={self.code >> 5}.{self.code & 31:02d}, errcode={self.errcode!r})"
