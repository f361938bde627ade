# SPDX-License-Identifier: AGPL-3.0-or-later
"""Hypothesis strategies for CoAP messages."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from synapse_lb.coap.message import Message
from synapse_lb.coap.numbers import Type
from synapse_lb.coap.options import REGISTRY, OptionFormat, OptionPair, Options, encode_uint

PROPERTY = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=300)
"""How a property is examined: on a slow machine too, nothing depends on time."""

REQUEST_CODES = st.integers(0x01, 0x1F)
RESPONSE_CODES = st.integers(0x40, 0xBF)

EDGE_LENGTHS = st.sampled_from((0, 12, 13, 14, 268, 269, 270, 1034))
"""Around the values at which the length field of an option grows (RFC 7252 section 3.1)."""

ANY_VALUES = st.binary(max_size=20) | EDGE_LENGTHS.map(lambda length: b"v" * length)
ANY_NUMBERS = st.integers(0, 40) | st.integers(0, 0xFFFF) | st.sampled_from((12, 13, 268, 269, 281, 0xFFFF))


def _value_of(number: int) -> st.SearchStrategy[bytes]:
    definition = REGISTRY[number]
    if definition.format is OptionFormat.UINT:
        return st.integers(0, 256**definition.max_length - 1).map(encode_uint)
    if definition.format is OptionFormat.STRING:
        # A character takes up to four bytes in UTF-8.
        longest = definition.max_length // 4
        return st.text(min_size=definition.min_length, max_size=min(longest, 80)).map(str.encode)
    return st.binary(min_size=definition.min_length, max_size=definition.max_length)


@st.composite
def registered_pairs(draw: st.DrawFn) -> OptionPair:
    """An option of the registry, with a value of its format, in the shortest form."""
    number = draw(st.sampled_from(sorted(REGISTRY)))
    return number, draw(_value_of(number))


UNREGISTERED_PAIRS = st.tuples(st.sampled_from((256, 257)) | st.integers(1000, 0xFFFF), ANY_VALUES)
WELL_FORMED_OPTIONS = st.lists(registered_pairs() | UNREGISTERED_PAIRS, max_size=12).map(
    lambda pairs: Options.of(*pairs)
)
ANY_OPTIONS = st.lists(st.tuples(ANY_NUMBERS, ANY_VALUES), max_size=12).map(lambda pairs: Options.of(*pairs))


@st.composite
def messages(draw: st.DrawFn, options: st.SearchStrategy[Options] = ANY_OPTIONS) -> Message:
    """Any message that may be sent (RFC 7252 section 4.3, table 1)."""
    type_ = draw(st.sampled_from(Type))
    codes = [st.just(0)] if type_ != Type.NON else []
    if type_ <= Type.NON:
        codes.append(REQUEST_CODES)
    if type_ != Type.RST:
        codes.append(RESPONSE_CODES)
    code = draw(st.one_of(codes))
    message_id = draw(st.integers(0, 0xFFFF))
    if code == 0:
        return Message(type_, code, message_id)
    token = draw(st.binary(max_size=8))
    payload = draw(st.binary(max_size=64) | st.just(b"\xff") | st.just(b"x" * 1024))
    return Message(type_, code, message_id, token, draw(options), payload)
