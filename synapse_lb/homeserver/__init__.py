# SPDX-License-Identifier: AGPL-3.0-or-later
"""The Synapse module: configuration, listeners, dispatch.

The only room that imports Synapse; its internals only `hooks`.
"""
