# SPDX-License-Identifier: AGPL-3.0-or-later
"""Tests of the project as a whole: its layers, its files, its documents, its package."""
