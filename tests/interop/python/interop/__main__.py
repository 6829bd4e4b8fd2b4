"""`python -m interop tour` and `python -m interop load N`; what they do is in ../../README.md."""

from __future__ import annotations

import json
import sys

from .connection import Client, open_channel
from .load import load
from .tour import tour


def main(arguments: list[str]) -> int:
    with open_channel() as channel:
        client = Client(channel)
        match arguments:
            case ["tour"]:
                seen = tour(client)
            case ["load", calls]:
                seen = {"acknowledged": load(client.memory, int(calls))}
            case _:
                print("usage: python -m interop tour | load N", file=sys.stderr)
                return 2
    json.dump(seen, sys.stdout)
    print()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
