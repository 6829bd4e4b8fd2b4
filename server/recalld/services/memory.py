"""MemoryService: the messages of sessions."""

from __future__ import annotations

from datetime import timedelta
from uuid import UUID, uuid5

import grpc

from recall.v1 import memory_pb2, memory_pb2_grpc
from recalld import limits
from recalld.domain import MessageChange, NewMemory, NewMessage, SearchQuery, Store
from recalld.errors import InvalidField
from recalld.services import listing, structs, validate, wire
from recalld.services.call import RpcCall
from recalld.services.page_token import PageTokens
from recalld.services.times import optional_moment
from recalld.services.update_mask import UpdateMask

_DESCENDING = {
    memory_pb2.MESSAGE_ORDER_UNSPECIFIED: False,
    memory_pb2.MESSAGE_ORDER_SEQ_ASC: False,
    memory_pb2.MESSAGE_ORDER_SEQ_DESC: True,
}


class MemoryServicer(memory_pb2_grpc.MemoryServiceServicer):
    """`retention` is how long after its deletion a session may be purged."""

    def __init__(self, store: Store, retention: timedelta) -> None:
        self._store = store
        self._retention = retention

    def AddMemory(
        self, request: memory_pb2.AddMemoryRequest, context: grpc.ServicerContext
    ) -> memory_pb2.AddMemoryResponse:
        expected = (
            validate.non_negative(request.expected_last_seq, "expected_last_seq")
            if request.HasField("expected_last_seq")
            else None
        )
        memory = NewMemory(
            session_id=validate.identifier(request.session_id, "session_id"),
            messages=_new_messages(request),
            user_id=validate.optional_identifier(request.user_id, "user_id"),
            metadata=structs.to_document(request.metadata, "metadata"),
            expected_last_seq=expected,
        )
        added = self._store.add_memory(RpcCall(context), memory)
        return memory_pb2.AddMemoryResponse(
            messages=map(wire.added_message, added.messages),
            session_created=added.session_created,
            session_undeleted=added.session_undeleted,
        )

    def GetMemory(
        self, request: memory_pb2.GetMemoryRequest, context: grpc.ServicerContext
    ) -> memory_pb2.GetMemoryResponse:
        session_id = validate.identifier(request.session_id, "session_id")
        memory = self._store.get_memory(
            RpcCall(context),
            session_id,
            last_n=validate.size(request.last_n, "last_n", limits.DEFAULT_LAST_N, limits.MAX_LAST_N),
            max_tokens=validate.non_negative(request.max_tokens, "max_tokens"),
            after_seq=validate.non_negative(request.after_seq, "after_seq"),
        )
        response = memory_pb2.GetMemoryResponse()
        if memory.session is not None:
            response.session.CopyFrom(wire.session(memory.session, self._retention))
        for message in memory.messages:
            wire.fill_message(response.messages.add(), session_id, message)
        if response.ByteSize() > limits.MAX_PAGE_BYTES:
            kept = listing.fitting(reversed(response.messages), limits.MAX_PAGE_BYTES - response.session.ByteSize())
            del response.messages[: -len(kept)]
        return response

    def ListMessages(
        self, request: memory_pb2.ListMessagesRequest, context: grpc.ServicerContext
    ) -> memory_pb2.ListMessagesResponse:
        call = RpcCall(context)
        session_id = validate.identifier(request.session_id, "session_id")
        size = validate.page_size(request.page_size, "page_size")
        descending = validate.choice(request.order, "order", _DESCENDING)
        tokens = PageTokens(call.namespace, request)
        found = self._store.list_messages(call, session_id, tokens.seq(), size, descending=descending)
        messages, following = listing.page(
            [(message, message.seq) for message in found.messages],
            found.messages[-1].seq if found.more else None,
            lambda message: wire.message(session_id, message),
        )
        return memory_pb2.ListMessagesResponse(messages=messages, next_page_token=tokens.at_seq(following))

    def GetMessage(
        self, request: memory_pb2.GetMessageRequest, context: grpc.ServicerContext
    ) -> memory_pb2.GetMessageResponse:
        session_id, message_id = _address(request)
        message = self._store.get_message(RpcCall(context), session_id, message_id)
        return memory_pb2.GetMessageResponse(message=wire.message(session_id, message))

    def UpdateMessage(
        self, request: memory_pb2.UpdateMessageRequest, context: grpc.ServicerContext
    ) -> memory_pb2.UpdateMessageResponse:
        session_id, message_id = _address(request)
        mask = UpdateMask(request.update_mask, ("content", "role", "token_count", "metadata"))
        role = mask.pick("role", request.role)
        if request.role or role is not None:  # named or not, as for every other field
            validate.role(request.role, "role")
        change = MessageChange(
            content=mask.pick("content", validate.content(request.content, "content")),
            role=role,
            token_count=mask.pick("token_count", validate.non_negative(request.token_count, "token_count")),
            metadata=mask.pick_metadata(structs.to_document(request.metadata, "metadata")),
        )
        message = self._store.update_message(RpcCall(context), session_id, message_id, change)
        return memory_pb2.UpdateMessageResponse(message=wire.message(session_id, message))

    def DeleteMessage(
        self, request: memory_pb2.DeleteMessageRequest, context: grpc.ServicerContext
    ) -> memory_pb2.DeleteMessageResponse:
        session_id, message_id = _address(request)
        message = self._store.delete_message(RpcCall(context), session_id, message_id)
        return memory_pb2.DeleteMessageResponse(message=wire.message(session_id, message))

    def ClearMemory(
        self, request: memory_pb2.ClearMemoryRequest, context: grpc.ServicerContext
    ) -> memory_pb2.ClearMemoryResponse:
        session_id = validate.identifier(request.session_id, "session_id")
        session = self._store.clear_memory(RpcCall(context), session_id)
        return memory_pb2.ClearMemoryResponse(session=wire.session(session, self._retention))

    def SearchMemory(
        self, request: memory_pb2.SearchMemoryRequest, context: grpc.ServicerContext
    ) -> memory_pb2.SearchMemoryResponse:
        session_id, user_id = validate.scope(request)
        query = SearchQuery(
            query=validate.query(request.query, "query"),
            limit=validate.page_size(request.page_size, "page_size"),
            session_id=session_id,
            user_id=user_id,
            roles=_roles(request),
            metadata=structs.to_document(request.metadata, "metadata") or None,
            create_time_from=optional_moment(request, "create_time_from"),
            create_time_to=optional_moment(request, "create_time_to"),
        )
        best_first = (
            memory_pb2.SearchResult(message=wire.message(match.session_id, match.message), score=match.score)
            for match in self._store.search_memory(RpcCall(context), query)
        )
        return memory_pb2.SearchMemoryResponse(results=listing.fitting(best_first, limits.MAX_PAGE_BYTES))


def _new_messages(request: memory_pb2.AddMemoryRequest) -> list[NewMessage]:
    if not 1 <= len(request.messages) <= limits.MAX_MESSAGES_PER_CALL:
        raise InvalidField("messages", f"must be 1 to {limits.MAX_MESSAGES_PER_CALL}")
    ids = _message_ids(request)
    messages = []
    for index, message in enumerate(request.messages):
        path = f"messages[{index}]"
        messages.append(
            NewMessage(
                message_id=ids[index] if ids else None,
                role=validate.role(message.role, f"{path}.role"),
                content=validate.content(message.content, f"{path}.content"),
                metadata=structs.to_document(message.metadata, f"{path}.metadata"),
                token_count=validate.non_negative(message.token_count, f"{path}.token_count"),
            )
        )
    return messages


def _message_ids(request: memory_pb2.AddMemoryRequest) -> list[str] | None:
    """The id of each message: its own, or one that a repetition of the call derives again. None when none is given."""
    given = [
        validate.uuid(message.message_id, f"messages[{index}].message_id") if message.message_id else None
        for index, message in enumerate(request.messages)
    ]
    seed = validate.uuid(request.request_id, "request_id") if request.request_id else next(filter(None, given), None)
    if seed is None:
        return None
    ids: dict[str, None] = {}
    for index, own in enumerate(given):
        message_id = own or str(uuid5(UUID(seed), str(index)))
        if message_id in ids:
            raise InvalidField(f"messages[{index}].message_id", "is the id of an earlier message of this call")
        ids[message_id] = None
    return list(ids)


def _address(
    request: memory_pb2.GetMessageRequest | memory_pb2.UpdateMessageRequest | memory_pb2.DeleteMessageRequest,
) -> tuple[str, str]:
    return validate.identifier(request.session_id, "session_id"), validate.uuid(request.message_id, "message_id")


def _roles(request: memory_pb2.SearchMemoryRequest) -> list[str]:
    if len(request.roles) > limits.MAX_ROLES_PER_SEARCH:
        raise InvalidField("roles", f"must be at most {limits.MAX_ROLES_PER_SEARCH}")
    return [validate.role(role, f"roles[{index}]") for index, role in enumerate(request.roles)]
