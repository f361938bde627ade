# SPDX-License-Identifier: AGPL-3.0-or-later
"""In which words requests are put to a server: keys, path codes, compression (MSC3079; Content-Format 11060)."""

from __future__ import annotations

from typing import Any, Final

import attrs

from synapse_lb.client.errors import BadRequest
from synapse_lb.client.extension import WISHES, Extensions, Wish, Words
from synapse_lb.client.large import gains_by_deflate
from synapse_lb.client.sticky import Carried
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.mapping import MappingError, encode_request, encode_x1_request
from synapse_lb.msc3079.options import FORMAT_CBOR, FORMAT_CBOR_DEFLATE

Pairs = list[tuple[str, str]] | tuple[tuple[str, str], ...]

KEY_VERSIONS: Final = (None, 1)

_REFUSALS: Final = {
    Code.NOT_ACCEPTABLE: OptionNumber.ACCEPT,
    Code.UNSUPPORTED_CONTENT_FORMAT: OptionNumber.CONTENT_FORMAT,
}
"""Responses that say that a request was not run because of an option (RFC 7252 sections 5.10.3 and 5.10.4)."""


@attrs.define
class Dialect:
    """The words for all requests of one client, and what its server has shown to understand.

    Attributes:
        key_version: of the integer keys in bodies; None for text keys.
        path_codes: send the MSC's short codes in place of paths.
        deflate: let large answers come compressed, and send bodies so once the server has shown that it can.
        server_inflates: whether it has; None as long as it is not known.
        extensions: what is known of the server's extensions.
    """

    key_version: int | None
    path_codes: bool
    deflate: bool
    extensions: Extensions = attrs.field(factory=lambda: Extensions(False))
    server_inflates: bool | None = None

    @classmethod
    def chosen(cls, key_version: int | None, path_codes: bool, deflate: bool, extensions: Wish) -> Dialect:
        """The words that an application has chosen.

        Raises:
            ValueError: there is no such key version, or no such wish for extensions.
        """
        if key_version not in KEY_VERSIONS:
            raise ValueError(f"there is no version {key_version} of the CBOR keys")
        if extensions not in WISHES:
            raise ValueError(f"extensions are one of {WISHES}, not {extensions!r}")
        return cls(key_version, path_codes, deflate, Extensions(extensions))

    def request(
        self, method: str, path: str, pairs: Pairs, json: Any, carried: Carried, *, brief: bool = False
    ) -> CoapRequest:
        """Word a request.

        Args:
            method: HTTP method.
            path: percent-encoded path from its leading slash.
            pairs: query parameters, not percent-encoded.
            json: the body as a JSON value; `NO_BODY` for none.
            carried: its sticky options; the aliases that the request defines are noted there.
            brief: ask for a success without its body, in x1; in other words nothing can be asked.

        Raises:
            BadRequest: it cannot be sent over CoAP.
        """
        try:
            if carried.words.are_x1 and carried.aliases is not None:
                written = encode_x1_request(
                    method,
                    path,
                    pairs,
                    json,
                    carried.aliases,
                    token=carried.token,
                    announce=carried.words is Words.ANNOUNCE,
                    brief=brief,
                )
                carried.definitions[:] = written.definitions
                return CoapRequest(
                    written.code, Options.of(*written.options), written.payload, brief_blocks=True
                )
            return self._version_1(method, path, pairs, json, carried)
        except MappingError as error:
            raise BadRequest(error.message) from error

    def _version_1(self, method: str, path: str, pairs: Pairs, json: Any, carried: Carried) -> CoapRequest:
        compresses = self.deflate and self.server_inflates
        code, options, payload = encode_request(
            method,
            path,
            pairs,
            json,
            token=carried.token,
            key_version=self.key_version,
            announce_key_version=carried.key_version,
            offer_x1=carried.words is Words.OFFER,
            path_codes=self.path_codes,
            content_format=FORMAT_CBOR_DEFLATE if compresses else FORMAT_CBOR,
        )
        worded = Options.of(*options)
        # A compressed body asks for a compressed answer by itself, and so does x1; Accept would take it back.
        asks = (
            carried.words is Words.OFFER
            or worded.get_uint(OptionNumber.CONTENT_FORMAT) == FORMAT_CBOR_DEFLATE
        )
        if self.deflate and not asks and gains_by_deflate(method, path, pairs):
            worded = worded.with_uint(OptionNumber.ACCEPT, FORMAT_CBOR_DEFLATE)
        return CoapRequest(code, worded, payload)

    def learn(self, response: CoapResponse) -> None:
        """Take note of what a response shows."""
        compressed = response.options.get_uint(OptionNumber.CONTENT_FORMAT) == FORMAT_CBOR_DEFLATE
        if compressed and self.server_inflates is None:
            self.server_inflates = True

    def refused(self, request: CoapRequest, response: CoapResponse) -> bool:
        """Take note of a response that refuses the words of a request.

        Returns:
            Whether it does: then the request was not run, and other words are there for it.
        """
        number = _REFUSALS.get(Code(response.code)) if response.code in Code.__members__.values() else None
        if number is None or request.options.get_uint(number) != FORMAT_CBOR_DEFLATE:
            return False
        if number == OptionNumber.ACCEPT:
            self.deflate = False
        self.server_inflates = False
        return True
