# SPDX-License-Identifier: AGPL-3.0-or-later
"""What the Makefile runs; no part of the package."""
