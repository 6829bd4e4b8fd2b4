"""`python -m recalld`, and the console script `recalld`."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs the command line, and exits with its status."""
    try:
        # Importing takes long enough to be interrupted.
        from recalld.cli import run

        status = run(sys.argv[1:])
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("recall", "recalld"):
            raise
        print(f"recalld: {error.name} is missing; to run the service: pip install 'recalld[server]'", file=sys.stderr)
        status = 2
    except KeyboardInterrupt:
        status = 130
    # Loaded when it has served.
    if serving := sys.modules.get("recalld.serving"):
        serving.end_process(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
