# SPDX-License-Identifier: AGPL-3.0-or-later
"""The tables of x1 are frozen, one to one, and written down in docs/x1_tables.tsv."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Final

from twisted.trial.unittest import SynchronousTestCase

from synapse_lb.msc3079 import keys_v1
from synapse_lb.msc3079.x1 import dictionary, keys, paths, templates, values
from synapse_lb.msc3079.x1.values import Kind, Simple
from tests.msc3079.strategies import table
from tools import x1_dictionary, x1_tables

FROZEN: Final = {
    "key": "4d8b5dc43b0effaee64ced33b566a977980a175a4a716a86061e2d0c38b1107c",
    "value": "f238e7821267ce57c142f6c744a4f4358c1c54d86080d11c3747db10f3aa3d49",
    "template": "94d51f5a936db9799397aa5cd3317670603958dc790dedd5263bf495acaa538e",
    "path": "8710c7e102d57f55b4f63bf1f8c1252cdc04d4ed96591e16924e2bdc9a73ba89",
}
"""SHA-256 of the rows of each table."""

DICTIONARY_DIGEST: Final = "527a476f34b8a0ee31ec45066d2cad169ce1b247e5eccadd89b42a20e1b5d56b"


class FrozenTests(SynchronousTestCase):
    """A released table never changes."""

    def test_tables(self) -> None:
        rows: dict[str, list[str]] = {}
        for row in x1_tables.rows():
            rows.setdefault(row.split("\t")[0], []).append(row)
        found = {name: hashlib.sha256("\n".join(of).encode()).hexdigest() for name, of in rows.items()}
        self.assertEqual(found, FROZEN)

    def test_kinds(self) -> None:
        self.assertEqual([kind.value for kind in Simple], [*range(10), 255])
        self.assertEqual([kind.value for kind in Kind], list(range(9)))

    def test_document(self) -> None:
        """docs/x1_tables.tsv is what the tables are."""
        self.assertEqual(x1_tables.TABLES.read_text(encoding="utf-8"), x1_tables.text())

    def test_dictionary(self) -> None:
        """It is the one that has this digest, and the one that comes out of the training."""
        self.assertEqual(hashlib.sha256(dictionary.DICTIONARY).hexdigest(), DICTIONARY_DIGEST)
        self.assertEqual(dictionary.DIGEST, DICTIONARY_DIGEST)
        self.assertEqual(x1_dictionary.train(list(x1_dictionary.samples())), dictionary.DICTIONARY)
        module = Path(dictionary.__file__).read_text(encoding="utf-8")
        self.assertEqual(module, x1_dictionary.module(dictionary.DICTIONARY))


class KeyTests(SynchronousTestCase):
    """Integer keys."""

    def test_version_1_is_in_it(self) -> None:
        for key, integer in keys_v1.KEY_TO_INTEGER.items():
            self.assertEqual(keys.INTEGER_TO_KEY[integer], key)

    def test_the_fields_numbers_keep_their_meaning(self) -> None:
        rows = table("keys_105_148.tsv")
        self.assertEqual(len(rows), 44)
        for key, integer in rows:
            self.assertEqual(keys.INTEGER_TO_KEY[int(integer)], key)

    def test_one_to_one(self) -> None:
        """Each key has one number, or two of which one is short."""
        twice = {key for key, count in Counter(keys.INTEGER_TO_KEY.values()).items() if count > 1}
        self.assertEqual(twice, set(keys.SHORT_KEYS))
        self.assertEqual(len(keys.SHORT_KEYS), 24)
        self.assertEqual(set(keys.KEY_TO_INTEGER), set(keys.INTEGER_TO_KEY.values()))
        for key, integer in keys.KEY_TO_INTEGER.items():
            self.assertEqual(keys.INTEGER_TO_KEY[integer], key)

    def test_two_bytes_at_most(self) -> None:
        self.assertTrue(all(-257 < integer < 256 for integer in keys.INTEGER_TO_KEY))


class OtherTableTests(SynchronousTestCase):
    """Values, templates, paths."""

    def test_values(self) -> None:
        self.assertEqual(len(set(values.VALUES)), len(values.VALUES))
        self.assertEqual(len(values.SIMPLE_TO_VALUE), len(values.VALUES))
        self.assertFalse(set(values.SIMPLE_TO_VALUE) & (set(range(10)) | set(range(20, 32))))

    def test_templates(self) -> None:
        """Keys of the table, each once; defaults are JSON values of keys that come after those without one."""
        for template in templates.TEMPLATES:
            names = [field.key for field in template]
            self.assertEqual(len(set(names)), len(names))
            self.assertLessEqual(set(names), set(keys.KEY_TO_INTEGER))
            self.assertIs(template[0].default, templates.NO_DEFAULT)
            for field in template:
                if field.default is not templates.NO_DEFAULT:
                    self.assertEqual(json.loads(json.dumps(field.default)), field.default)

    def test_paths(self) -> None:
        self.assertEqual(len(set(paths.PATHS)), len(paths.PATHS))
        self.assertLessEqual(len(paths.PATHS), 256)
        for path in paths.PATHS:
            self.assertTrue(path.startswith(("/_matrix/client/", "/.well-known/matrix/client")), path)
