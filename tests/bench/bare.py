"""`python -m tests.bench.bare serve …`: the echo with nothing of recalld around its calls.

There are neither interceptors nor limits. What it costs less than the echo is what recalld puts around every call.
For information: no target rests on it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

import recalld.app
from recalld.__main__ import main
from tests.bench.echo import add_echo

_server = grpc.server


def _bare_server(threads: ThreadPoolExecutor, options: Any, **_: Any) -> grpc.Server:
    return _server(ThreadPoolExecutor(threads._max_workers), options=options)


# Worker processes start by importing the main program under another name.
if __name__ in ("__main__", "__mp_main__"):
    recalld.app.add_services = add_echo  # type: ignore[assignment,attr-defined]
    grpc.server = _bare_server  # type: ignore[assignment]

if __name__ == "__main__":
    main()
