"""Every limit and default of the API, named once.

The proto comments, the README's table and `recalld config` state the same numbers; tests/unit/test_limits.py and
tests/unit/test_readme.py tie them together.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Final

KIB: Final = 1024
MIB: Final = 1024 * KIB

# Identifiers and short texts, in Unicode characters (code points).
MAX_ID_CHARACTERS: Final = 256
MAX_ROLE_CHARACTERS: Final = 64
MAX_NAME_CHARACTERS: Final = 256
MAX_QUERY_CHARACTERS: Final = 4096

# Documents, in bytes of UTF-8. Metadata is measured as compact JSON.
MAX_CONTENT_BYTES: Final = 1 * MIB
MAX_METADATA_BYTES: Final = 64 * KIB
MAX_METADATA_DEPTH: Final = 32

# Calls.
MAX_MESSAGES_PER_CALL: Final = 1000
MAX_ROLES_PER_SEARCH: Final = 100
MAX_REQUEST_BYTES: Final = 4 * MIB

# Pages, chunks and batches. Above the maximum means the maximum; 0 means the default.
DEFAULT_PAGE_SIZE: Final = 100
MAX_PAGE_SIZE: Final = 1000
DEFAULT_LAST_N: Final = 12
MAX_LAST_N: Final = 1000
DEFAULT_PURGE_BATCH: Final = 2000
MAX_PURGE_BATCH: Final = 10_000

# A reply stays under the 4 MiB that gRPC clients accept by default; a chunk of a stream is smaller, so that a slow
# reader holds little of the server's memory.
MAX_PAGE_BYTES: Final = 3 * MIB
MAX_CHUNK_BYTES: Final = 1 * MIB

# Rows that one page may examine for a filter without an index. Then it is sent, even if it is short or empty.
MAX_EXAMINED: Final = 10_000

# What one search may examine: the newest messages, the messages with rare terms of the query, the first characters of
# each message (the schema's functions have this number too), and the sessions that are counted to estimate the scope.
MAX_SEARCHED_NEWEST: Final = 2_000
MAX_SEARCHED_RARE: Final = 5_000
MAX_SEARCHED_CHARACTERS: Final = 65_536
MAX_SEARCHED_SESSIONS: Final = 10_000

# How long deleted data is kept before purging may remove it.
DEFAULT_RETENTION: Final = timedelta(days=30)

# The namespace of every caller while authentication is off.
DEFAULT_NAMESPACE: Final = "default"

# --- who may call

MAX_NAMESPACE_CHARACTERS: Final = 64

# Seconds within which every replica refuses a key that was revoked, or a token whose signing key was taken away.
REVOCATION_SECONDS: Final = 10.0

# RFC 7518, section 3.2: the secret of HS256 must be at least as long as the hash.
LEAST_SECRET_BYTES: Final = 32

# All metadata of a call, the credential among it, counted as HTTP/2 does: names, values and 32 bytes for each pair.
MAX_CALL_METADATA_BYTES: Final = 16 * KIB
