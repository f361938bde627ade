# SPDX-License-Identifier: AGPL-3.0-or-later
"""The commands of `synapse-lb`: thin; arguments, streams and reactor are passed in. Begin with `main`."""
