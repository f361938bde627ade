# SPDX-License-Identifier: AGPL-3.0-or-later
"""What `synapse-lb bench wire` measures with: a homeserver with something to say, and one module for each side."""
