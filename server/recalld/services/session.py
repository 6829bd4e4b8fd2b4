"""SessionService: conversations, who they belong to and what is noted about them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from uuid import uuid4

import grpc

from recall.v1 import session_pb2, session_pb2_grpc
from recalld import domain
from recalld.domain import Position, SessionChange, SessionOrder, SessionQuery, Store
from recalld.errors import SessionNotFound
from recalld.services import listing, structs, validate, wire
from recalld.services.call import RpcCall
from recalld.services.page_token import PageTokens
from recalld.services.times import optional_moment
from recalld.services.update_mask import UpdateMask

_ORDERS = {
    session_pb2.SESSION_ORDER_UNSPECIFIED: SessionOrder.CREATE_TIME_ASC,
    session_pb2.SESSION_ORDER_CREATE_TIME_ASC: SessionOrder.CREATE_TIME_ASC,
    session_pb2.SESSION_ORDER_CREATE_TIME_DESC: SessionOrder.CREATE_TIME_DESC,
    session_pb2.SESSION_ORDER_UPDATE_TIME_ASC: SessionOrder.UPDATE_TIME_ASC,
    session_pb2.SESSION_ORDER_UPDATE_TIME_DESC: SessionOrder.UPDATE_TIME_DESC,
}


class SessionServicer(session_pb2_grpc.SessionServiceServicer):
    """`retention` is how long after its deletion a session may be purged."""

    def __init__(self, store: Store, retention: timedelta) -> None:
        self._store = store
        self._retention = retention

    def CreateSession(
        self, request: session_pb2.CreateSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.CreateSessionResponse:
        session = self._store.create_session(
            RpcCall(context),
            validate.optional_identifier(request.session_id, "session_id") or str(uuid4()),
            validate.optional_identifier(request.user_id, "user_id"),
            structs.to_document(request.metadata, "metadata"),
        )
        return session_pb2.CreateSessionResponse(session=self._wire(session))

    def GetSession(
        self, request: session_pb2.GetSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.GetSessionResponse:
        session_id = validate.identifier(request.session_id, "session_id")
        session = self._store.get_session(RpcCall(context), session_id, show_deleted=request.show_deleted)
        return session_pb2.GetSessionResponse(session=self._wire(session))

    def UpdateSession(
        self, request: session_pb2.UpdateSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.UpdateSessionResponse:
        session_id = validate.identifier(request.session_id, "session_id")
        mask = UpdateMask(request.update_mask, ("metadata", "user_id"))
        change = SessionChange(
            metadata=mask.pick_metadata(structs.to_document(request.metadata, "metadata")),
            user_id=mask.pick("user_id", validate.optional_identifier(request.user_id, "user_id")),
            etag=validate.without_nul(request.etag, "etag"),
        )
        session = self._store.update_session(RpcCall(context), session_id, change)
        return session_pb2.UpdateSessionResponse(session=self._wire(session))

    def DeleteSession(
        self, request: session_pb2.DeleteSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.DeleteSessionResponse:
        session_id = validate.identifier(request.session_id, "session_id")
        etag = validate.without_nul(request.etag, "etag")
        try:
            session = self._store.delete_session(RpcCall(context), session_id, etag=etag)
        except SessionNotFound:
            if not request.allow_missing:
                raise
            return session_pb2.DeleteSessionResponse()
        return session_pb2.DeleteSessionResponse(session=self._wire(session))

    def UndeleteSession(
        self, request: session_pb2.UndeleteSessionRequest, context: grpc.ServicerContext
    ) -> session_pb2.UndeleteSessionResponse:
        session_id = validate.identifier(request.session_id, "session_id")
        session = self._store.undelete_session(RpcCall(context), session_id)
        return session_pb2.UndeleteSessionResponse(session=self._wire(session))

    def ListSessions(
        self, request: session_pb2.ListSessionsRequest, context: grpc.ServicerContext
    ) -> session_pb2.ListSessionsResponse:
        call = RpcCall(context)
        query = _query(request)
        size = validate.page_size(request.page_size, "page_size")
        tokens = PageTokens(call.namespace, request)
        found = self._store.list_sessions(call, query, tokens.position(), size)
        sessions, following = listing.page(found.sessions, found.next, self._wire)
        return session_pb2.ListSessionsResponse(sessions=sessions, next_page_token=tokens.at_position(following))

    def StreamSessions(
        self, request: session_pb2.StreamSessionsRequest, context: grpc.ServicerContext
    ) -> Iterator[session_pb2.StreamSessionsResponse]:
        call = RpcCall(context)
        query = _query(request)
        size = validate.page_size(request.chunk_size, "chunk_size")
        tokens = PageTokens(call.namespace, request)

        def fetch(
            after: Position | None, count: int
        ) -> tuple[Sequence[tuple[domain.Session, Position]], Position | None]:
            found = self._store.list_sessions(call, query, after, count)
            return found.sessions, found.next

        for sessions, position in listing.chunks(fetch, tokens.position(), size, self._wire):
            yield session_pb2.StreamSessionsResponse(sessions=sessions, resume_token=tokens.at_position(position))

    def _wire(self, session: domain.Session) -> session_pb2.Session:
        return wire.session(session, self._retention)


def _query(request: session_pb2.ListSessionsRequest | session_pb2.StreamSessionsRequest) -> SessionQuery:
    wanted = request.filter
    return SessionQuery(
        order=validate.choice(request.order_by, "order_by", _ORDERS),
        show_deleted=request.show_deleted,
        user_id=validate.optional_identifier(wanted.user_id, "filter.user_id"),
        metadata=structs.to_document(wanted.metadata, "filter.metadata") or None,
        create_time_from=optional_moment(wanted, "create_time_from", "filter."),
        create_time_to=optional_moment(wanted, "create_time_to", "filter."),
        update_time_from=optional_moment(wanted, "update_time_from", "filter."),
        update_time_to=optional_moment(wanted, "update_time_to", "filter."),
    )
