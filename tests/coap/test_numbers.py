# SPDX-License-Identifier: AGPL-3.0-or-later
"""Numbers of types, codes and options (RFC 7252 sections 3 and 12)."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.coap.numbers import (
    Code,
    OptionNumber,
    Type,
    code_to_text,
    is_request,
    is_response,
    is_success,
)


class TypeTests(SynchronousTestCase):
    def test_values(self) -> None:
        """RFC 7252 section 3."""
        self.assertEqual([(t.name, t.value) for t in Type], [("CON", 0), ("NON", 1), ("ACK", 2), ("RST", 3)])


class CodeTests(SynchronousTestCase):
    def test_registered_codes(self) -> None:
        """RFC 7252 tables 5 and 6, RFC 7959, 8132, 8516 and 8768."""
        self.assertEqual(
            {code.name: code_to_text(code) for code in Code},
            {
                "EMPTY": "0.00",
                "GET": "0.01",
                "POST": "0.02",
                "PUT": "0.03",
                "DELETE": "0.04",
                "FETCH": "0.05",
                "PATCH": "0.06",
                "IPATCH": "0.07",
                "CREATED": "2.01",
                "DELETED": "2.02",
                "VALID": "2.03",
                "CHANGED": "2.04",
                "CONTENT": "2.05",
                "CONTINUE": "2.31",
                "BAD_REQUEST": "4.00",
                "UNAUTHORIZED": "4.01",
                "BAD_OPTION": "4.02",
                "FORBIDDEN": "4.03",
                "NOT_FOUND": "4.04",
                "METHOD_NOT_ALLOWED": "4.05",
                "NOT_ACCEPTABLE": "4.06",
                "REQUEST_ENTITY_INCOMPLETE": "4.08",
                "CONFLICT": "4.09",
                "PRECONDITION_FAILED": "4.12",
                "REQUEST_ENTITY_TOO_LARGE": "4.13",
                "UNSUPPORTED_CONTENT_FORMAT": "4.15",
                "UNPROCESSABLE_ENTITY": "4.22",
                "TOO_MANY_REQUESTS": "4.29",
                "INTERNAL_SERVER_ERROR": "5.00",
                "NOT_IMPLEMENTED": "5.01",
                "BAD_GATEWAY": "5.02",
                "SERVICE_UNAVAILABLE": "5.03",
                "GATEWAY_TIMEOUT": "5.04",
                "PROXYING_NOT_SUPPORTED": "5.05",
                "HOP_LIMIT_REACHED": "5.08",
            },
        )

    def test_text_of_unregistered_codes(self) -> None:
        self.assertEqual(code_to_text(0xFF), "7.31")
        self.assertEqual(code_to_text(0x20), "1.00")

    def test_every_code_is_of_one_class(self) -> None:
        """RFC 7252 section 12.1: 0.01-0.31 requests, 2.00-5.31 responses, the rest empty or reserved."""
        self.assertEqual([code for code in range(256) if is_request(code)], list(range(0x01, 0x20)))
        self.assertEqual([code for code in range(256) if is_response(code)], list(range(0x40, 0xC0)))
        self.assertEqual([code for code in range(256) if is_success(code)], list(range(0x40, 0x60)))


class OptionNumberTests(SynchronousTestCase):
    def test_values(self) -> None:
        """IANA's CoAP Option Numbers registry."""
        self.assertEqual(
            {number.name: number.value for number in OptionNumber},
            {
                "IF_MATCH": 1,
                "URI_HOST": 3,
                "ETAG": 4,
                "IF_NONE_MATCH": 5,
                "OBSERVE": 6,
                "URI_PORT": 7,
                "LOCATION_PATH": 8,
                "OSCORE": 9,
                "URI_PATH": 11,
                "CONTENT_FORMAT": 12,
                "MAX_AGE": 14,
                "URI_QUERY": 15,
                "ACCEPT": 17,
                "Q_BLOCK1": 19,
                "LOCATION_QUERY": 20,
                "BLOCK2": 23,
                "BLOCK1": 27,
                "SIZE2": 28,
                "Q_BLOCK2": 31,
                "PROXY_URI": 35,
                "PROXY_SCHEME": 39,
                "SIZE1": 60,
                "ECHO": 252,
                "NO_RESPONSE": 258,
                "REQUEST_TAG": 292,
            },
        )
