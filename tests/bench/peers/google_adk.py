"""google-adk: DatabaseSessionService.append_event, of an event with one text, to sessions that were made before.

The service opens a transaction, locks and reads the session's row, inserts the event, and updates the row's time. The
sessions stay in memory, as in a runner that goes on with a conversation.
"""

from __future__ import annotations

import asyncio
from typing import Any

from google.adk.events import Event
from google.adk.sessions import DatabaseSessionService
from google.genai.types import Content, Part

from tests.bench.peers.driver import MOST_WRITERS, Share, answer_async

_WHERE: dict[str, Any] = {"app_name": "bench", "user_id": "user"}


async def _main() -> None:
    share = Share()
    url = share.url.replace("postgresql://", "postgresql+asyncpg://")
    service = DatabaseSessionService(url, pool_size=MOST_WRITERS)
    sessions = {
        number: await service.create_session(**_WHERE, session_id=f"session-{number}") for number in share.sessions
    }

    async def append(number: int, text: str) -> None:
        event = Event(author="user", invocation_id="bench", content=Content(role="user", parts=[Part(text=text)]))
        await service.append_event(sessions[number], event)

    await answer_async(share, append)


if __name__ == "__main__":
    asyncio.run(_main())
