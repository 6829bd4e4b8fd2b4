"""Transport: one servicer a file; request to domain call to response."""

from __future__ import annotations

from datetime import timedelta

import grpc

from recall.v1 import admin_pb2_grpc, memory_pb2_grpc, session_pb2_grpc, user_pb2_grpc
from recalld.domain import Store
from recalld.services.admin import AdminServicer
from recalld.services.memory import MemoryServicer
from recalld.services.session import SessionServicer
from recalld.services.user import UserServicer


def add_services(server: grpc.Server, store: Store, retention: timedelta) -> None:
    """Registers the four services of recall.v1.

    Args:
        retention: how long deleted data is kept before purging may remove it.
    """
    session_pb2_grpc.add_SessionServiceServicer_to_server(SessionServicer(store, retention), server)
    memory_pb2_grpc.add_MemoryServiceServicer_to_server(MemoryServicer(store, retention), server)
    user_pb2_grpc.add_UserServiceServicer_to_server(UserServicer(store, retention), server)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(AdminServicer(store, retention), server)
