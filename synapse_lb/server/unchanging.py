# SPDX-License-Identifier: AGPL-3.0-or-later
"""Answers that are the same for everybody, and the same again for as long as the homeserver runs.

Each client asks for ``/versions`` before anything else, and a stranger may ask for it as often as it likes. It is
served as every request, but what came of it is written, and compressed, only when it is another than before.
"""

from __future__ import annotations

import marshal
from collections import OrderedDict
from typing import Final

from synapse_lb.msc3079.messages import MatrixRequest, MatrixResponse
from synapse_lb.msc3079.server_mapping import Answer, encode_answer

PATHS: Final = frozenset({b"/_matrix/client/versions"})
"""The resources, of which none takes or gives anything of a user's."""

MAX_WRITTEN: Final = 16
"""Answers that are kept: one for each form in which somebody has asked for it."""

MAX_SIZE: Final = 16 * 1024
"""Bytes of such an answer, before it is written; a larger one is not kept."""


class UnchangingAnswers:
    """Writes answers; one for each gateway. Of those that are kept the one that was not wanted for longest goes."""

    def __init__(self) -> None:
        self._written: OrderedDict[tuple[object, ...], Answer] = OrderedDict()

    def __len__(self) -> int:
        return len(self._written)

    def encode(self, response: MatrixResponse, request: MatrixRequest) -> Answer:
        """Write an answer; see `encode_answer`."""
        reply = request.reply
        if response.status != 200 or reply.x1 is not None or request.path not in PATHS:
            return encode_answer(response, reply)
        try:
            # Equal values may be written differently (1 and True); this tells them apart.
            body = marshal.dumps(response.body, 2)
        except ValueError:
            return encode_answer(response, reply)
        key = body, reply.content_format, reply.key_version, reply.deflate, reply.brief
        known = self._written.get(key)
        if known is None:
            known = encode_answer(response, reply)
            if len(body) > MAX_SIZE:
                return known
            self._written[key] = known
            if len(self._written) > MAX_WRITTEN:
                self._written.popitem(last=False)
        else:
            self._written.move_to_end(key)
        return known
