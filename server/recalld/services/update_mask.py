"""What an update changes: the fields that its mask names, or without a mask those that are not empty."""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

from google.protobuf import field_mask_pb2

from recalld.domain import Metadata, MetadataChange
from recalld.errors import InvalidField

T = TypeVar("T")


class UpdateMask:
    """A request's `update_mask`.

    Args:
        mask: the field; without paths it counts as unset.
        fields: the paths that it may name. `*` names them all.

    Raises InvalidField for any other path.
    """

    def __init__(self, mask: field_mask_pb2.FieldMask, fields: Collection[str]) -> None:
        paths = set(mask.paths)
        if not paths <= {*fields, "*"}:
            raise InvalidField("update_mask", f"may name {', '.join(fields)} or *")
        self._given = bool(paths)
        self._named = set(fields) if "*" in paths else paths

    def pick(self, field: str, value: T) -> T | None:
        """The value to give the field, or None to leave the field as it is."""
        change = field in self._named if self._given else bool(value)
        return value if change else None

    def pick_metadata(self, document: Metadata) -> MetadataChange | None:
        """As `pick`: named by the mask, the metadata is replaced; without a mask it is merged."""
        picked = self.pick("metadata", document)
        return None if picked is None else MetadataChange(picked, replace=self._given)
