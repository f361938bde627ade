# SPDX-License-Identifier: AGPL-3.0-or-later
"""Asks a process of a homeserver over HTTP, for dispatchers that do not serve a request themselves. See `http`."""
