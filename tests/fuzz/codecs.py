# SPDX-License-Identifier: AGPL-3.0-or-later
"""Fuzz targets of the codecs: CoAP messages and options, CBOR, the mapping to Matrix, DTLS records and ClientHellos."""

from __future__ import annotations

from synapse_lb.coap.block import Block
from synapse_lb.coap.errors import CoapError, MessageFormatError
from synapse_lb.coap.message import Message
from synapse_lb.coap.options import (
    Options,
    decode_uint,
    encode_uint,
    strip_unrecognized_elective,
    unrecognized_critical,
)
from synapse_lb.msc3079 import cbor
from synapse_lb.msc3079.errors import MappingError, UnknownPathError
from synapse_lb.msc3079.mapping import decode_request, decode_response, encode_error
from synapse_lb.msc3079.messages import NO_BODY, MatrixResponse
from synapse_lb.msc3079.options import ACCESS_TOKEN
from synapse_lb.msc3079.server_mapping import encode_answer
from synapse_lb.msc3079.sticky import StickyState
from synapse_lb.msc3079.x1 import (
    AliasBook,
    BodyLimits,
    Side,
    compress_path,
    compress_query,
    decode_body,
    encode_body,
    expand_path,
    expand_query,
)
from synapse_lb.msc3079.x1.aliases import MAX_ALIASES
from synapse_lb.txdtls import compact, forms, records
from tests.fuzz.tape import Tape
from tests.msc3079.columns import thresholds


def coap_message(data: bytes) -> None:
    """Read a datagram as a message."""
    try:
        message = Message.decode(data)
    except MessageFormatError as error:
        assert len(data) < 4 or error.message_id is None or 0 <= error.message_id <= 0xFFFF
        return
    again = message.encode()
    assert len(again) <= len(data), "an encoding that is longer than one that was valid"
    assert Message.decode(again) == message
    repr(message)


def coap_options(data: bytes) -> None:
    """Read options and blocks with any numbers and values."""
    tape = Tape(data)
    pairs: list[tuple[int, bytes]] = []
    while not tape.ended and len(pairs) < 64:
        pairs.append((tape.number(2) & 0x1FF, tape.take(tape.byte() & 0x0F)))
    options = Options(tuple(pairs))
    repr(options)
    unrecognized_critical(options, (257,))
    kept = strip_unrecognized_elective(options)
    assert strip_unrecognized_elective(kept) == kept
    assert [number for number, _ in options] == sorted(number for number, _ in pairs)
    for _, value in pairs:
        assert decode_uint(encode_uint(decode_uint(value))) == decode_uint(value)
        try:
            block = Block.decode(value)
        except CoapError:
            continue
        assert Block.decode(block.encode()) == block
        assert 0 <= block.offset <= 2**20 * 1024


def cbor_body(data: bytes) -> None:
    """Read a CBOR body."""
    try:
        decoded = cbor.decode(data)
    except cbor.CborError:
        return
    for version in (None, 1):
        again = cbor.encode(decoded.value, version)
        assert same(cbor.decode(again).value, decoded.value)
        with thresholds(1, widest=4):
            assert cbor.encode(decoded.value, version) == again, (
                "columns that write something else than the loop"
            )


def x1_body(data: bytes) -> None:
    """Read an x1 body, and pass on what it says."""
    server, client = AliasBook(Side.SERVER), AliasBook(Side.CLIENT)
    try:
        value = decode_body(data, server, BodyLimits(max_size=1 << 14, max_expansion=1 << 16))
    except cbor.CborError:
        assert len(server) == 0, "a body that was refused has defined something"
        return
    assert len(server) <= 128
    for compress in (True, False):
        encoded = encode_body(value, client, compress=compress)
        assert same(decode_body(encoded.data, server), value)
        client.confirm(encoded.definitions)


def x1_path(data: bytes) -> None:
    """Read a path or query of x1, and write what it says."""
    server, client = AliasBook(Side.SERVER), AliasBook(Side.CLIENT)
    try:
        segments = expand_path((data,), server)
        assert expand_path(compress_path(segments, client).values, server) == segments
    except (cbor.CborError, UnknownPathError):
        pass
    try:
        query = expand_query((data,), server)
        assert expand_query(compress_query(query, client).values, server) == query
    except cbor.CborError:
        pass
    assert len(server) <= 256


def same(left: object, right: object) -> bool:
    """Whether two JSON values are the same, with 1, 1.0 and True told apart."""
    if type(left) is not type(right):
        return False
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def matrix_request(data: bytes) -> None:
    """Map a sequence of requests of one association."""
    tape = Tape(data)
    sticky = StickyState()
    for _ in range(8):
        if tape.ended:
            return
        try:
            message = Message.decode(tape.sized())
        except MessageFormatError:
            continue
        try:
            request = decode_request(message.code, message.options.pairs, message.payload, sticky)
        except MappingError as error:
            code, options, payload = encode_error(error)
            assert code >= 0x80
            Message.decode(Message(message.type, code, 1, b"", Options(tuple(options)), payload).encode())
            continue
        assert request.path.startswith(b"/_matrix/client/") or request.path == b"/.well-known/matrix/client"
        assert b"?" not in request.path
        assert b"\n" not in request.path + request.query
        assert request.body is NO_BODY or message.payload
        token = request.access_token
        assert not token or token.isascii()
        if token and len(token) > 6 and token.encode() not in request.path + request.query:
            assert token not in repr(request), "a token in a representation"


def x1_request(data: bytes) -> None:
    """Map requests of several users of one association, of whom some choose x1, and answer them."""
    tape = Tape(data)
    sticky = StickyState(allows_x1=True)
    book = AliasBook(Side.CLIENT)
    for _ in range(8):
        if tape.ended:
            return
        try:
            message = Message.decode(tape.sized())
        except MessageFormatError:
            continue
        pairs = message.options.pairs
        try:
            request = decode_request(message.code, pairs, message.payload, sticky)
        except MappingError as error:
            code, options, payload = encode_error(error)
            assert code >= 0x80
            decode_response(code, options, payload, book=book)
            continue
        assert len(request.path) + len(request.query) < 20_000, "a path that expands"
        assert sticky.aliases is None or len(sticky.aliases) <= MAX_ALIASES
        said = [value for number, value in pairs if number == ACCESS_TOKEN]
        assert said or request.access_token is None or request.access_token == sticky.token
        body = {} if request.body is NO_BODY else {"room_id": "!room:example.com", "body": request.body}
        answer = encode_answer(MatrixResponse(200, body), request.reply)
        if sticky.aliases is not None:  # the client knows what it has defined itself
            book._texts.update(
                {number: text for number, text in sticky.aliases._texts.items() if not number & 1}
            )
        read = decode_response(answer.code, answer.options, answer.payload, book=book)
        assert request.reply.brief or read.status == 200


def matrix_response(data: bytes) -> None:
    """Map an answer of a server."""
    try:
        message = Message.decode(data)
        response = decode_response(message.code, message.options.pairs, message.payload)
    except (MessageFormatError, MappingError):
        return
    assert 200 <= response.status <= 599


def dtls_compact(data: bytes) -> None:
    """What stands for a datagram of DTLS has a form that stands for the same; nothing else raises."""
    offer = compact.Offer(data[:32], b"\xcc\xa9")
    plains = [data, forms.read(data)[0], forms.read(data, offer)[0]]
    if compact.is_compact(data):
        plains += [plain for plain in (compact.expand(data), compact.expand_answer(data, offer)) if plain]
    for plain in plains:
        for short in (compact.shrink(plain), compact.shrink_hello(plain) or plain):
            assert len(short) <= len(plain)
            assert short == plain or compact.expand(short) == plain
        answer = compact.shrink_answer(plain, offer)
        assert answer == plain or compact.expand_answer(answer, offer) == plain


def dtls_records(data: bytes) -> None:
    """Look at a datagram as the DTLS port does, before any key is involved."""
    dtls_compact(data)
    whole = records.split_records(data)
    assert data.startswith(b"".join(whole))
    for mtu in (64, 1200):
        for join in (False, True):
            packed = records.pack_records(whole, mtu, join_application=join)
            assert b"".join(packed) == b"".join(whole)
            assert all(len(one) <= mtu or records.split_records(one) == [one] for one in packed)
    summary = records.inspect(data)
    if summary is not None:
        assert 0 < summary.records <= len(whole)
        assert summary.size <= len(data)
        kept = records.without_short_records(data[: summary.size], 24)
        again = records.inspect(kept)
        assert again is None or again.shortest_encrypted >= 24
        records.highest_sequence(data[: summary.size])
    hello = records.parse_client_hello(data)
    if hello is not None:
        assert summary is not None or not data.startswith(b"\x16\xfe")
        assert data.startswith(hello.record) or len(hello.record) <= len(data)
        assert len(hello.cookie) <= 255
        assert len(hello.random) == 32
        repr(hello)
    for record in whole:
        number = int.from_bytes(record[5:11], "big")
        assert records.renumber(records.renumber(record, number + 5), number) == record
    merged = records.merge_handshakes(whole, 1200)
    assert sum(map(len, merged)) == sum(map(len, whole)) - records.HEADER_SIZE * (len(whole) - len(merged))
