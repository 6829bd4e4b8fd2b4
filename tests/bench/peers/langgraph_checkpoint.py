"""langgraph-checkpoint-postgres: PostgresSaver.put of a checkpoint whose only channel holds the last N messages.

That is how a graph keeps a conversation: the channel is written anew at each step, here trimmed to its last messages,
which are dicts, the cheapest there is. A put writes the channel's blob and the checkpoint in one pipeline.

Arguments: whether writers share `one saver`, as all that use a graph do, or have `a saver a writer`; and N.
"""

from __future__ import annotations

from collections import deque
from itertools import count

import psycopg
from langgraph.checkpoint.base import empty_checkpoint
from langgraph.checkpoint.base.id import uuid6
from langgraph.checkpoint.postgres import PostgresSaver
from psycopg.rows import dict_row

from tests.bench.peers.driver import Append, Share, answer

_Messages = deque[dict[str, str]]


def _main() -> None:
    share = Share()
    steps = count(1)
    savers, last_n = share.arguments
    kept: dict[int, _Messages] = {number: deque(maxlen=int(last_n)) for number in share.sessions}
    shared = _saver(share.url)
    shared.setup()
    one = savers == "one saver"
    answer(share, lambda: _appender(shared if one else _saver(share.url), steps, kept))


def _saver(url: str) -> PostgresSaver:
    """As PostgresSaver.from_conn_string connects it."""
    return PostgresSaver(psycopg.connect(url, autocommit=True, prepare_threshold=0, row_factory=dict_row))


def _appender(saver: PostgresSaver, steps: count[int], kept: dict[int, _Messages]) -> Append:

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
