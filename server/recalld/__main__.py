"""`python -m recalld`, and the console script `recalld`."""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    """Runs the command line, and exits with its status."""
    if "serve" in sys.argv[1:2]:
        # Until the server takes signals itself, there is nothing to stop, and a stop is no failure.
        signal.signal(signal.SIGTERM, lambda number, frame: os._exit(0))
    try:
        # Importing takes long enough to be interrupted.
        from recalld.cli import run

        status = run(sys.argv[1:])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("recall", "recalld"):
            raise
        remedy = "to run the service, in a clone of the repository: pip install '.[server]'"
        print(f"recalld: {error.name} is missing; {remedy}", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    # From here on Ctrl-C could only interrupt the end of the interpreter, which would print a stack.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Loaded when it has served.
    if serving := sys.modules.get("recalld.serving"):
        serving.end_process(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
