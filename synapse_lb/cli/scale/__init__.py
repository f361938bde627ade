# SPDX-License-Identifier: AGPL-3.0-or-later
"""Parts of `synapse-lb bench scale`: a crowd of clients, and what a server process takes for them."""
