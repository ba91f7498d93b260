"""Answers of /v1/responses that may be gone on from: kept in memory as JSON, the oldest dropped first."""

import json
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from smollm3.server.replies import dumps

MAX_RESPONSES = 1000
MAX_BYTES = 64 * 2**20
OWN_BYTES = 1024  # of an answer beside its JSON: names, objects, the place in the table


@dataclass(frozen=True, slots=True)
class Stored:
    """An answer and the chat that led to it, its own turn included, the instructions not."""

    response_json: bytes  # not objects, which take several times as much
    messages_json: bytes
    owner: str

    @property
    def response(self) -> dict[str, Any]:
        response: dict[str, Any] = json.loads(self.response_json)
        return response

    @property
    def messages(self) -> list[dict[str, Any]]:
        messages: list[dict[str, Any]] = json.loads(self.messages_json)
        return messages

    @property
    def num_bytes(self) -> int:
        return len(self.response_json) + len(self.messages_json) + OWN_BYTES


class ResponseStore:
    """Answers by id; who asks must be who made them. `max_bytes` of memory, all told."""

    def __init__(self, max_responses: int = MAX_RESPONSES, max_bytes: int = MAX_BYTES) -> None:
        self._max_responses = max_responses
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._stored: OrderedDict[str, Stored] = OrderedDict()

    def __len__(self) -> int:
        return len(self._stored)

    def put(self, response: dict[str, Any], messages: list[dict[str, Any]], owner: str) -> None:
        """Keep an answer, and drop the oldest ones that are too much."""
        stored = Stored(dumps(response), dumps(messages), owner)
        self._stored[response["id"]] = stored
        self._num_bytes += stored.num_bytes
        while len(self._stored) > self._max_responses or self._num_bytes > self._max_bytes:
            _, oldest = self._stored.popitem(last=False)
            self._num_bytes -= oldest.num_bytes

    def get(self, response_id: str, owner: str) -> Stored | None:
        """Return an answer of this owner's, or None."""
        stored = self._stored.get(response_id)
        return stored if stored is not None and stored.owner == owner else None

    def delete(self, response_id: str, owner: str) -> bool:
        """Forget an answer; False if there is none of this owner's."""
        stored = self.get(response_id, owner)
        if stored is None:
            return False
        del self._stored[response_id]
        self._num_bytes -= stored.num_bytes
        return True
