"""The schema's history: one plain .sql file a step, in order, applied by Alembic.

Each step is `versions/NNNN_words.sql` with a few lines of Python of the same name, which tell Alembic its place in the
order. A step must leave the previous release of the server working, and is never edited once released.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

# Seconds between two attempts to be the one that migrates.
_LOCK_INTERVAL = 0.2


def await_turn(try_lock: Callable[[], object]) -> None:
    """Returns when `try_lock` has the lock of migrations. To be called outside of a transaction, and so must it leave.

    It waits for nothing in the database: an index that is built concurrently would wait for that in turn.
    """
    while not try_lock():
        time.sleep(_LOCK_INTERVAL)


def upgrade_from_sql(revision_file: str) -> Callable[[], None]:
    """Makes a revision's `upgrade` out of the .sql file that lies beside it.

    What two empty lines separate is sent by itself: Citus takes no two statements about indexes at once.
    """

    def upgrade() -> None:
        from alembic import op

        for part in Path(revision_file).with_suffix(".sql").read_text("utf-8").split("\n\n\n"):
            op.execute(part)

    return upgrade


def upgrade_from_sql_concurrently(revision_file: str) -> Callable[[], None]:
    """Likewise, of statements that cannot be in a transaction, each on its own.

    A run that is killed leaves some of them done: all must bear to be done again.
    """

    def upgrade() -> None:
        from alembic import op

        with op.get_context().autocommit_block():
            for statement in Path(revision_file).with_suffix(".sql").read_text("utf-8").split(";\n"):
                if statement.strip():
                    op.execute(statement)

    return upgrade
