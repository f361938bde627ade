# SPDX-License-Identifier: AGPL-3.0-or-later
"""The standalone gateway: CoAP in, HTTP out, in front of a homeserver that is not ours to change."""
