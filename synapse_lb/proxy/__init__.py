# SPDX-License-Identifier: AGPL-3.0-or-later
"""HTTP in, CoAP out: a homeserver's client-server API on localhost for any Matrix client (`docs/proxy.md`)."""
