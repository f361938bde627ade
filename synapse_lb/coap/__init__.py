# SPDX-License-Identifier: AGPL-3.0-or-later
"""The CoAP endpoint, sans I/O (RFC 7252, RFC 7641, RFC 7959): no Twisted, no DTLS, no Matrix. Begin with `endpoint`."""
