# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fuzz targets by name, each with the one sentence that must hold for any bytes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

import attrs

from tests.fuzz import clients, codecs, dtls, endpoints

CORPUS: Final = Path(__file__).parent / "corpus"


@attrs.frozen
class Target:
    """A fuzz target.

    Attributes:
        run: Takes any bytes; raises where the invariant does not hold.
        invariant: What that is.
        max_length: Bytes that the fuzzer makes up at most.
    """

    run: Callable[[bytes], None]
    invariant: str
    max_length: int = 600


TARGETS: Final[Mapping[str, Target]] = {
    "coap_message": Target(
        codecs.coap_message,
        "A datagram becomes a Message that is equal after encoding and decoding it, or raises MessageFormatError.",
    ),
    "coap_options": Target(
        codecs.coap_options,
        "Any numbers and values make Options; a value is a Block that encodes to itself, or raises CoapError.",
    ),
    "cbor_body": Target(
        codecs.cbor_body,
        "A body becomes a JSON value that is the same after encoding it with and without integer keys, or raises"
        " CborError.",
    ),
    "x1_body": Target(
        codecs.x1_body,
        "A body of x1 becomes a JSON value that is the same after encoding it, or raises CborError, defining nothing.",
    ),
    "x1_path": Target(
        codecs.x1_path,
        "A path or query of x1 becomes one that is the same after writing it, or raises CborError or UnknownPathError.",
    ),
    "matrix_request": Target(
        codecs.matrix_request,
        "A message becomes a request for the Client-Server API with a clean path and token, or raises a MappingError"
        " that has an answer.",
    ),
    "x1_request": Target(
        codecs.x1_request,
        "Messages of several users of one association become requests with paths of bounded length and answers that"
        " their client can read, or raise a MappingError that has an answer.",
    ),
    "matrix_response": Target(
        codecs.matrix_response, "A message becomes a response with an HTTP status, or raises MappingError."
    ),
    "discovery": Target(
        clients.discovery,
        "Whatever a server says of where it is, it is found over HTTPS at a port that there is, or DiscoveryError.",
    ),
    "proxy_call": Target(
        clients.proxy_call,
        "An HTTP request to the proxy is worded for CoAP and HTTPS, or raises ProxyError or BadRequest.",
    ),
    "dtls_records": Target(
        codecs.dtls_records,
        "A datagram is split and packed without loss, and its headers and ClientHello are read within its bytes.",
    ),
    "dtls_port": Target(
        dtls.port,
        "Strangers get at most three bytes for one, end nobody's association, and leave no timer behind.",
        max_length=400,
    ),
    "endpoint_server": Target(
        endpoints.server,
        "Whatever peers send, nothing raises, tables keep their bounds, a request that has ended stays ended, and"
        " nothing is left.",
    ),
    "endpoint_client": Target(
        endpoints.client, "Whatever peers answer, each request has at most one outcome, and nothing is left."
    ),
    "endpoint_pair": Target(
        endpoints.pair,
        "On any network, between any two applications, both endpoints keep their bounds and come to rest.",
    ),
}


def corpus(name: str) -> list[bytes]:
    """The committed inputs of a target."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
