# SPDX-License-Identifier: AGPL-3.0-or-later
"""x1's paths and queries, byte for byte; whatever has no code is sent as it is."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.errors import CborError, UnknownPathError
from synapse_lb.msc3079.paths_v1 import CODE_TO_PATH
from synapse_lb.msc3079.x1 import (
    AliasBook,
    EncodedPath,
    Side,
    UnknownAliasError,
    X1Error,
    compress_path,
    compress_query,
    expand_path,
    expand_query,
    is_x1_path,
)
from synapse_lb.msc3079.x1.paths import PATHS
from tests.msc3079.strategies import PROPERTY
from tests.msc3079.x1.strategies import SEGMENTS

ROOM = "!foo:localhost"
EVENT = "$" + "A" * 42 + "E"


def split(path: str) -> tuple[str, ...]:
    """The segments of a path."""
    return tuple(path.split("/")[1:])


class PathTests(SynchronousTestCase):
    """Paths."""

    def written(self, path: str, book: AliasBook | None = None) -> str:
        """The one x1 value of a path; what it expands to is checked."""
        encoded = compress_path(split(path), book)
        self.assertEqual(len(encoded.values), 1)
        self.assertTrue(is_x1_path(encoded.values))
        self.assertEqual(expand_path(encoded.values, AliasBook(Side.SERVER)), split(path))
        return encoded.values[0].hex()

    def test_examples(self) -> None:
        """One byte for the code, or two, and the parameters."""
        client = "/_matrix/client/v3"
        self.assertEqual(self.written(f"{client}/sync"), "80")
        room = "6e" + ROOM.encode().hex()
        self.assertEqual(self.written(f"{client}/rooms/{ROOM}/send/m.room.message/m1"), f"81{room}626d31")
        self.assertEqual(self.written(f"{client}/rooms/{ROOM}/send/m.room.member/m1"), f"8a{room}ec626d31")
        receipt = f"{client}/rooms/{ROOM}/receipt/m.read/{EVENT}"
        self.assertEqual(self.written(receipt), f"84{room}582102" + "00" * 31 + "01")
        sent = f"{client}/rooms/{ROOM}/send/m.room.message/m1790000000000.7"
        self.assertEqual(self.written(sent), f"81{room}480880d8c1a28c3407")
        self.assertEqual(self.written(f"{client}/capabilities"), "c000")
        self.assertEqual(self.written("/_matrix/client/r0/sync"), "c100")
        self.assertEqual(self.written(f"{client}/rooms/{ROOM}/state/m.room.name/"), f"8b{room}f82e60")
        self.assertEqual(self.written(f"{client}/rooms/{ROOM}/state/m.room.name"), f"8c{room}f82e")

    def test_alias(self) -> None:
        """The room is defined, and once the server has answered it is two bytes."""
        book = AliasBook(Side.CLIENT)
        path = f"/_matrix/client/v3/rooms/{ROOM}/send/m.room.message/m1"
        self.assertEqual(self.written(path, book), "81510000" + "01" + ROOM.encode().hex() + "626d31")
        encoded = compress_path(split(path), book)
        server = AliasBook(Side.SERVER)
        expand_path(encoded.values, server)
        book.confirm(encoded.definitions)
        later = compress_path(split(path), book)
        self.assertEqual(later, EncodedPath((bytes.fromhex("814100626d31"),)))
        self.assertEqual(expand_path(later.values, server), split(path))

    def test_every_template(self) -> None:
        """Each has a code of its own, and r0 has one where v3 has."""
        seen = set()
        for template in PATHS:
            for path in {template, template.replace("/v3/", "/r0/")}:
                value = self.written(path)
                seen.add(value)
        self.assertEqual(len(seen), len(PATHS) + sum("/v3/" in path for path in PATHS))

    def test_version_1_is_still_there(self) -> None:
        """Its codes are read as before; all its paths have a code of x1."""
        self.assertEqual(
            expand_path((b"9", b"!r:x", b"m.room.message", b"t")),
            split("/_matrix/client/r0/rooms/!r:x/send/m.room.message/t"),
        )
        for path in CODE_TO_PATH.values():
            self.assertTrue(is_x1_path(compress_path(split(path)).values), path)

    def test_paths_without_a_code(self) -> None:
        """They are sent as they are: unknown ones, and such as do not fit one value."""
        for path in ("/_matrix/client/v9/x", "/", "/aa/é", f"/_matrix/client/v3/rooms/{'x' * 253}/join"):
            values = compress_path(split(path)).values
            self.assertEqual(values, tuple(part.encode() for part in split(path)))
            self.assertEqual(expand_path(values), split(path))

    def test_what_does_not_fit_defines_nothing(self) -> None:
        path = f"/_matrix/client/v3/rooms/{ROOM}/send/m.room.message/{'t' * 250}"
        self.assertEqual(compress_path(split(path), AliasBook(Side.CLIENT)).definitions, ())

    def test_refused(self) -> None:
        """Codes that there are not, parameters too many or too few, no texts, more values than one."""
        for values, error in (
            (("ff",), UnknownPathError),
            (("c0ff",), UnknownPathError),
            (("c117",), UnknownPathError),
            (("c0",), UnknownPathError),
            (("80", "61"), UnknownPathError),
            (("8000",), CborError),
            (("81",), CborError),
            (("9361",), CborError),
            (("9300",), CborError),
            (("9361ff",), CborError),
            (("93e0",), X1Error),
            (("93a0",), CborError),
            (("93f7",), X1Error),
            (("934104",), UnknownAliasError),
        ):
            with self.assertRaises(error, msg=str(values)):
                expand_path([bytes.fromhex(value) for value in values], AliasBook(Side.SERVER))


class QueryTests(SynchronousTestCase):
    """Queries."""

    def test_examples(self) -> None:
        plain = (b"since=s72_4_0_1", b"timeout=30000", b"filter=0")
        packed = compress_query(plain)
        self.assertEqual(
            [value.hex(" ") for value in packed.values],
            ["80 18 c7 45 06 04 89 14 01 18 59 19 75 30 38 a7 00"],
        )
        self.assertEqual(expand_query(packed.values), plain)

    def test_order_and_repeats_stay(self) -> None:
        plain = (b"server_name=example.org", b"via=b", b"server_name=example.net", b"from=", b"x==y=")
        packed = compress_query(plain)
        self.assertEqual(len(packed.values), 1)
        self.assertEqual(expand_query(packed.values), plain)

    def test_what_is_left_as_it_is(self) -> None:
        """Parameters without a value, what is no UTF-8, what gets no shorter or does not fit."""
        for plain in ((b"full",), (b"from=\xff",), (), (b"a=b",), (b"filter=" + b"x" * 252,)):
            self.assertEqual(compress_query(plain), EncodedPath(plain))
            self.assertEqual(expand_query(plain), plain)

    @PROPERTY
    @given(
        st.lists(st.tuples(SEGMENTS | st.sampled_from(("since", "timeout", "from")), SEGMENTS), max_size=4)
    )
    def test_to_the_letter(self, pairs: list[tuple[str, str]]) -> None:
        plain = tuple(f"{name.replace('=', '')}={value}".encode() for name, value in pairs)
        client, server = AliasBook(Side.CLIENT), AliasBook(Side.SERVER)
        for _ in range(2):
            packed = compress_query(plain, client)
            self.assertEqual(expand_query(packed.values, server), plain)
            client.confirm(packed.definitions)

    @PROPERTY
    @given(st.binary(max_size=30))
    def test_junk(self, data: bytes) -> None:
        value = b"\x80" + data
        try:
            plain = expand_query((value,), AliasBook(Side.SERVER))
        except CborError:
            return
        self.assertTrue(all(b"=" in part for part in plain))
