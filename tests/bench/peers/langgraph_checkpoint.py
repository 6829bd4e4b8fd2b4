"""langgraph-checkpoint-postgres: PostgresSaver.put of a checkpoint whose only channel holds the last N messages.

That is how a graph keeps a conversation: the channel is written anew at each step, here trimmed to its last messages,
which are dicts, the cheapest there is. A put writes the channel's blob and the checkpoint in one pipeline. A saver lets
one thread at it at a time, so each writer has a saver and a connection of its own.
"""

from __future__ import annotations

from collections import deque
from itertools import count

import psycopg
from driver import Append, Share, answer
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

_Messages = deque[dict[str, str]]


def _main() -> None:
    share = Share()
    steps = count(1)
    kept: dict[int, _Messages] = {number: deque(maxlen=int(share.arguments[0])) for number in share.sessions}
    answer(share, lambda: _appender(share.url, steps, kept))


def _appender(url: str, steps: count[int], kept: dict[int, _Messages]) -> Append:
    # As PostgresSaver.from_conn_string connects.
    saver = PostgresSaver(psycopg.connect(url, autocommit=True, prepare_threshold=0, row_factory=dict_row))
    saver.setup()

    def append(number: int, text: str) -> None:
        messages = kept[number]
        messages.append({"role": "user", "content": text})
        step = next(steps)
        versions = {"messages": f"{step:032}"}
        checkpoint = empty_checkpoint() | {
            "id": str(uuid6()),
            "channel_values": {"messages": list(messages)},
            "channel_versions": versions,
        }
        config = {"configurable": {"thread_id": f"session-{number}", "checkpoint_ns": ""}}
        saver.put(config, checkpoint, {"source": "input", "step": step, "parents": {}}, versions)

    return append


if __name__ == "__main__":
    _main()
