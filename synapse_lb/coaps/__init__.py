# SPDX-License-Identifier: AGPL-3.0-or-later
"""CoAP over DTLS on Twisted: what drives a sans-I/O endpoint (RFC 7252 section 9). Begin with `driver`."""
