"""openai-agents: SQLAlchemySession.add_items, of one item, to sessions on one engine.

The session opens a transaction, makes its row if there is none, inserts the item as JSON, and updates the row's time.
"""

from __future__ import annotations

import asyncio

from agents.extensions.memory import SQLAlchemySession
from sqlalchemy.ext.asyncio import create_async_engine

from tests.bench.peers.driver import MOST_WRITERS, Share, answer_async


async def _main() -> None:
    share = Share()
    engine = create_async_engine(share.url.replace("postgresql://", "postgresql+asyncpg://"), pool_size=MOST_WRITERS)
    first = SQLAlchemySession("tables", engine=engine, create_tables=True)
    await first.add_items([{"role": "user", "content": "makes the tables"}])
    sessions = {number: SQLAlchemySession(f"session-{number}", engine=engine) for number in share.sessions}

    async def append(number: int, text: str) -> None:
        await sessions[number].add_items([{"role": "user", "content": text}])

    await answer_async(share, append)


if __name__ == "__main__":
    asyncio.run(_main())
