# SPDX-License-Identifier: AGPL-3.0-or-later
"""Public harness for tests: a throw-away Synapse, bad networks, networks in memory, fakes."""
