# SPDX-License-Identifier: AGPL-3.0-or-later
"""Fuzz targets for everything that reads bytes of strangers, with a small corpus for each.

`targets` names them, each with its invariant in one sentence. `trial tests.fuzz` runs each on its corpus and on
mutations of it, and for some seconds under atheris; `make fuzz` runs atheris for as long as one likes.
"""
