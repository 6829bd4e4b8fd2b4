"""AdminService: removing deleted data for good."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

import grpc

from recall.v1 import admin_pb2, admin_pb2_grpc
from recalld import limits
from recalld.domain import PurgeProgress, PurgeQuery, Store
from recalld.services import validate
from recalld.services.call import RpcCall
from recalld.services.times import age

_BEGINNING = datetime.min.replace(tzinfo=UTC)

# How far the clock of the server that deleted something may be ahead of this one's, when all that is deleted is to go.
_MOST_AHEAD = timedelta(minutes=1)


def _now() -> datetime:
    return datetime.now(UTC)


class AdminServicer(admin_pb2_grpc.AdminServiceServicer):
    """`retention` is how long ago something must have been deleted to be purged, unless a request says otherwise."""

    def __init__(self, store: Store, retention: timedelta, clock: Callable[[], datetime] = _now) -> None:
        self._store = store
        self._retention = retention
        self._clock = clock

    def Purge(
        self, request: admin_pb2.PurgeRequest, context: grpc.ServicerContext
    ) -> Iterator[admin_pb2.PurgeResponse]:
        older_than = age(request.older_than, "older_than") if request.HasField("older_than") else self._retention
        session_id, user_id = validate.scope(request)
        query = PurgeQuery(
            cutoff=_before(self._clock(), older_than) if older_than else self._clock() + _MOST_AHEAD,
            session_id=session_id,
            user_id=user_id,
            dry_run=request.dry_run,
            batch_size=validate.size(
                request.batch_size, "batch_size", limits.DEFAULT_PURGE_BATCH, limits.MAX_PURGE_BATCH
            ),
        )
        progress = PurgeProgress(sessions=0, messages=0, users=0)
        for latest in self._store.purge(RpcCall(context), query):
            if latest != progress:
                progress = latest
                yield admin_pb2.PurgeResponse(**progress._asdict())
        yield admin_pb2.PurgeResponse(**progress._asdict(), done=True)


def _before(time: datetime, length: timedelta) -> datetime:
    """The time less the length, or the beginning of the calendar: a Duration may hold ten thousand years."""
    return time - length if length < time - _BEGINNING else _BEGINNING
