"""UserService: the persons and other principals that sessions belong to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta
from uuid import uuid4

import grpc

from recall.v1 import user_pb2, user_pb2_grpc
from recalld import domain
from recalld.domain import Position, Profile, Store, UserChange
from recalld.errors import UserNotFound
from recalld.services import listing, structs, validate, wire
from recalld.services.call import RpcCall
from recalld.services.page_token import PageTokens
from recalld.services.update_mask import UpdateMask


class UserServicer(user_pb2_grpc.UserServiceServicer):
    """`retention` is how long after its deletion a user may be purged."""

    def __init__(self, store: Store, retention: timedelta) -> None:
        self._store = store
        self._retention = retention

    def CreateUser(
        self, request: user_pb2.CreateUserRequest, context: grpc.ServicerContext
    ) -> user_pb2.CreateUserResponse:
        user_id = validate.optional_identifier(request.user_id, "user_id") or str(uuid4())
        profile = Profile(
            email=validate.name(request.email, "email"),
            first_name=validate.name(request.first_name, "first_name"),
            last_name=validate.name(request.last_name, "last_name"),
            metadata=structs.to_document(request.metadata, "metadata"),
        )
        user = self._store.create_user(RpcCall(context), user_id, profile)
        return user_pb2.CreateUserResponse(user=self._wire(user))

    def GetUser(self, request: user_pb2.GetUserRequest, context: grpc.ServicerContext) -> user_pb2.GetUserResponse:
        user_id = validate.identifier(request.user_id, "user_id")
        user = self._store.get_user(RpcCall(context), user_id, show_deleted=request.show_deleted)
        return user_pb2.GetUserResponse(user=self._wire(user))

    def UpdateUser(
        self, request: user_pb2.UpdateUserRequest, context: grpc.ServicerContext
    ) -> user_pb2.UpdateUserResponse:
        user_id = validate.identifier(request.user_id, "user_id")
        mask = UpdateMask(request.update_mask, ("email", "first_name", "last_name", "metadata"))
        change = UserChange(
            email=mask.pick("email", validate.name(request.email, "email")),
            first_name=mask.pick("first_name", validate.name(request.first_name, "first_name")),
            last_name=mask.pick("last_name", validate.name(request.last_name, "last_name")),
            metadata=mask.pick_metadata(structs.to_document(request.metadata, "metadata")),
            etag=validate.without_nul(request.etag, "etag"),
        )
        user = self._store.update_user(RpcCall(context), user_id, change)
        return user_pb2.UpdateUserResponse(user=self._wire(user))

    def DeleteUser(
        self, request: user_pb2.DeleteUserRequest, context: grpc.ServicerContext
    ) -> user_pb2.DeleteUserResponse:
        user_id = validate.identifier(request.user_id, "user_id")
        etag = validate.without_nul(request.etag, "etag")
        try:
            user = self._store.delete_user(RpcCall(context), user_id, etag=etag)
        except UserNotFound:
            if not request.allow_missing:
                raise
            return user_pb2.DeleteUserResponse()
        return user_pb2.DeleteUserResponse(user=self._wire(user))

    def UndeleteUser(
        self, request: user_pb2.UndeleteUserRequest, context: grpc.ServicerContext
    ) -> user_pb2.UndeleteUserResponse:
        user_id = validate.identifier(request.user_id, "user_id")
        user = self._store.undelete_user(RpcCall(context), user_id)
        return user_pb2.UndeleteUserResponse(user=self._wire(user))

    def ListUsers(
        self, request: user_pb2.ListUsersRequest, context: grpc.ServicerContext
    ) -> user_pb2.ListUsersResponse:
        call = RpcCall(context)
        size = validate.page_size(request.page_size, "page_size")
        tokens = PageTokens(call.namespace, request)
        found = self._store.list_users(call, tokens.position(), size, show_deleted=request.show_deleted)
        users, following = listing.page(found.users, found.next, self._wire)
        return user_pb2.ListUsersResponse(users=users, next_page_token=tokens.at_position(following))

    def StreamUsers(
        self, request: user_pb2.StreamUsersRequest, context: grpc.ServicerContext
    ) -> Iterator[user_pb2.StreamUsersResponse]:
        call = RpcCall(context)
        size = validate.page_size(request.chunk_size, "chunk_size")
        tokens = PageTokens(call.namespace, request)

        def fetch(after: Position | None, count: int) -> tuple[Sequence[tuple[domain.User, Position]], Position | None]:
            found = self._store.list_users(call, after, count, show_deleted=request.show_deleted)
            return found.users, found.next

        for users, position in listing.chunks(fetch, tokens.position(), size, self._wire):
            yield user_pb2.StreamUsersResponse(users=users, resume_token=tokens.at_position(position))

    def _wire(self, user: domain.User) -> user_pb2.User:
        return wire.user(user, self._retention)
