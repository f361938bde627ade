# SPDX-License-Identifier: AGPL-3.0-or-later
"""Matrix clients that we did not write, through the proxy, at a homeserver that serves them nothing over HTTP."""
