# SPDX-License-Identifier: AGPL-3.0-or-later
"""A real Synapse with two workers, PostgreSQL and Redis, as ``contrib/workers`` has it."""
