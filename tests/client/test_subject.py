# SPDX-License-Identifier: AGPL-3.0-or-later
"""What is observed, as requests and answers: what a server may say of its place in the stream."""

from __future__ import annotations

from typing import Any

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.client.dialect import Dialect
from synapse_lb.client.errors import BadResponse
from synapse_lb.client.subject import SYNC, MatrixSubject, RawSubject
from synapse_lb.coap.events import CoapRequest, CoapResponse
from synapse_lb.coap.numbers import Code, OptionNumber
from synapse_lb.coap.options import Options
from synapse_lb.msc3079.messages import NO_BODY

NO_PLACES: tuple[Any, ...] = (None, 1, 1.5, True, ["s1"], {"s1": 1}, "s\ud800")
"""What cannot be sent back; the last one JSON can name, and UTF-8 cannot."""


class PlaceTests(SynchronousTestCase):
    """The place after an answer."""

    def test_of_matrix(self) -> None:
        dialect = Dialect.chosen(1, True, False, False)
        subject = MatrixSubject("/_matrix/client/v3/sync", (), NO_BODY, SYNC, dialect)
        for place in ("s1", "", "s\u00fc"):
            self.assertEqual(subject.place({"next_batch": place}), place)
        for place in NO_PLACES:
            self.assertRaises(BadResponse, subject.place, {"next_batch": place})
        wrong: tuple[Any, ...] = (None, [], "next_batch", {})
        for read in wrong:
            self.assertRaises(BadResponse, subject.place, read)

    def test_of_others(self) -> None:
        path = ((OptionNumber.URI_PATH, part) for part in (b"_matrix", b"client", b"v3", b"sync"))
        subject = RawSubject(CoapRequest(Code.GET, Options.of(*path)))
        json = Options.of((OptionNumber.CONTENT_FORMAT, b"\x32"))
        for text, place in (
            (b'{"next_batch":"s1"}', "s1"),
            (b'{"next_batch":"s\\ud800"}', None),
            (b'{"next_batch":1}', None),
            (b"[]", None),
        ):
            self.assertEqual(subject.place(CoapResponse(Code.CONTENT, json, text)), place)
