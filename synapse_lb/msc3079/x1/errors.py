# SPDX-License-Identifier: AGPL-3.0-or-later
"""What can be wrong with an x1 body or path."""

from __future__ import annotations

from synapse_lb.msc3079.errors import CborError


class X1Error(CborError):
    """Bytes that are no x1 body, or a value that cannot be written as one."""


class AliasError(X1Error):
    """An alias that cannot be: a number out of range, not the peer's to give, or given to another text."""


class UnknownAliasError(AliasError):
    """A reference to an alias that nobody has defined here: the books of the two ends differ.

    The sender gets over it by forgetting what it took for known (`AliasBook.forget_known`).

    Attributes:
        number: The number of the alias.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"Alias {number} has not been defined", well_formed=True)
        self.number = number


class TooLargeError(X1Error):
    """A body that grows beyond what the reader allows (4.13)."""
