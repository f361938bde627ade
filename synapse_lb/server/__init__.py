# SPDX-License-Identifier: AGPL-3.0-or-later
"""From a DTLS port's messages to Matrix requests and back, for whoever serves them. Begin with `gateway`."""
