# SPDX-License-Identifier: AGPL-3.0-or-later
"""Path codes, both ways (MSC3079, appendix B)."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079.errors import UnknownPathError
from synapse_lb.msc3079.paths_v1 import CODE_TO_PATH, compress, expand, is_path_code
from tests.msc3079.strategies import PROPERTY

SEGMENTS = st.text(max_size=6) | st.sampled_from(
    ("_matrix", "client", "r0", "rooms", "state", "send", "user", "pushrules", "", "8", "n", "profile")
)


def filled(code: str, values: list[str]) -> tuple[str, ...]:
    """The full path of a code, by replacing the parameters in its template one after the other."""
    remaining = iter(values)
    return tuple(
        next(remaining) if segment.startswith("{") else segment
        for segment in CODE_TO_PATH[code].split("/")[1:]
    )


class EveryCodeTests(SynchronousTestCase):
    """Each of the 57 codes."""

    def test_both_ways(self) -> None:
        for code, template in CODE_TO_PATH.items():
            values = [f"#v{number}/é%?:x" for number in range(template.count("{"))]
            full = filled(code, values)
            self.assertEqual(expand([code, *values]), full, code)
            self.assertEqual(compress(full), (code, *values), code)

    def test_empty_parameters(self) -> None:
        for code, template in CODE_TO_PATH.items():
            values = [""] * template.count("{")
            self.assertEqual(expand([code, *values]), filled(code, values), code)

    def test_too_many_parameters(self) -> None:
        for code, template in CODE_TO_PATH.items():
            if code != "n":
                with self.assertRaises(UnknownPathError):
                    expand([code, *["x"] * (template.count("{") + 1)])

    def test_too_few_parameters(self) -> None:
        for code, template in CODE_TO_PATH.items():
            for given_number in range(template.count("{")):
                if (code, given_number) != ("8", 2):
                    with self.assertRaises(UnknownPathError):
                        expand([code, *["x"] * given_number])


class PathCodeTests(SynchronousTestCase):
    """Single codes and their corners."""

    def test_the_example_of_the_msc(self) -> None:
        self.assertEqual(
            expand(["9", "!r:h", "m.room.message", "7"]),
            ("_matrix", "client", "r0", "rooms", "!r:h", "send", "m.room.message", "7"),
        )

    def test_state_without_state_key(self) -> None:
        """Both forms that the Client-Server API has for an empty state key."""
        base = ("_matrix", "client", "r0", "rooms", "!r", "state", "m.room.name")
        self.assertEqual(expand(["8", "!r", "m.room.name"]), base)
        self.assertEqual(expand(["8", "!r", "m.room.name", ""]), (*base, ""))
        self.assertEqual(compress((*base, "")), ("8", "!r", "m.room.name", ""))
        self.assertEqual(compress(base), base)

    def test_push_rules(self) -> None:
        """The trailing slash belongs to the path; further segments are taken but never made."""
        base = ("_matrix", "client", "r0", "pushrules")
        self.assertEqual(expand(["n"]), (*base, ""))
        self.assertEqual(compress((*base, "")), ("n",))
        self.assertEqual(expand(["n", "global", "override"]), (*base, "global", "override"))
        self.assertEqual(compress((*base, "global", "override")), (*base, "global", "override"))

    def test_what_is_no_code(self) -> None:
        for segments in ((), ("_matrix", "client", "versions"), ("?",), ("",), ("77",), ("é",)):
            self.assertFalse(is_path_code(segments))
            self.assertEqual(expand(segments), segments)

    def test_codes_are_case_sensitive(self) -> None:
        self.assertNotEqual(expand(["a", "!r"]), expand(["A", "!r", "$e"]))

    def test_other_versions_have_no_code(self) -> None:
        for path in (("_matrix", "client", "v3", "sync"), ("_matrix", "client", "v1", "login")):
            self.assertEqual(compress(path), path)

    @PROPERTY
    @given(st.lists(SEGMENTS, max_size=9))
    def test_compressing_loses_nothing(self, tail: list[str]) -> None:
        for head in (("_matrix", "client", "r0"), ("_matrix", "client"), ("_matrix",)):
            full = (*head, *tail)
            self.assertEqual(expand(compress(full)), full)

    @PROPERTY
    @given(st.sampled_from(sorted(CODE_TO_PATH)), st.lists(SEGMENTS, max_size=5))
    def test_compressing_undoes_expanding(self, code: str, values: list[str]) -> None:
        try:
            full = expand([code, *values])
        except UnknownPathError:
            return
        self.assertEqual(expand(compress(full)), full)
