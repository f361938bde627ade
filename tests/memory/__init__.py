# SPDX-License-Identifier: AGPL-3.0-or-later
"""The fault harness: everything in one process, in virtual time, and everything goes wrong."""
