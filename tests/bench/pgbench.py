"""pgbench, which comes with the embedded Postgres: what Postgres alone does with the same statement, prepared."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Final

from recalld.storage.keys import session_key
from tests.bench.rounds import Figures
from tests.bench.site import Site
from tests.faults.cluster import programs

# What recalld.append is called with in storage/sql/memory.sql, for one message without metadata. What differs from one
# call to the next on the server differs here too: the session, the text and the time.
_APPEND: Final = """\
\\set session random(1, {sessions})
\\set text random(1, {texts})
select a.last_seq, a.outcome
  from recalld.append((array[{keys}]::uuid[])[:session], 'default', 'any', '', '{{}}'::jsonb, false,
                      null, null::smallint, clock_timestamp(), array[null]::uuid[], array['user'],
                      array[(array[{contents}])[:text]], array[null]::jsonb[], array[null]::integer[]) as a;
"""

# The server's connections: two workers with as many each as they come with.
_CLIENTS: Final = 16

# A text is found by walking over those before it, so there are few.
_TEXTS: Final = 20


class Pgbench:
    """Appends single messages to the sessions that AddMemory writes to, which must be there."""

    def __init__(self, site: Site) -> None:
        self._site = site
        names = [f"write-{number}" for number in range(len(site.texts))]
        script = _APPEND.format(
            sessions=len(names),
            texts=_TEXTS,
            keys=",".join(f"'{session_key('default', name)}'" for name in names),
            contents=",".join(_quoted(text) for text in site.texts[:_TEXTS]),
        )
        self._script = site.directory / "append.sql"
        self._script.write_text(script)

    def append(self, seconds: float) -> Figures:
        """Appends for so long. The latency is a mean: pgbench tells no percentiles."""
        before = self._site.postgres.seconds()
        said = _run(self._site.database_url, self._script, seconds)
        used = self._site.postgres.seconds() - before
        calls, rate, latency = parse(said)
        return {"rate": rate, "mean_ms": latency, "postgres_us": used / calls * 1e6, "calls": calls}


def _quoted(text: str) -> str:
    """A string constant of SQL, in which pgbench sees no variable."""
    return "E'" + "".join(f"\\x{ord(char):02x}" if char in "\\':" else char for char in text) + "'"


def _run(url: str, script: Path, seconds: float) -> str:
    command = [str(programs() / "pgbench"), "--no-vacuum", "-M", "prepared", "-c", str(_CLIENTS), "-j", "2"]
    command += ["-T", str(max(1, round(seconds))), f"--file={script}", url]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds + 60).stdout


def parse(said: str) -> tuple[int, float, float]:
    """How many transactions pgbench made, how many a second, and their mean latency in milliseconds."""
    calls = re.search(r"number of transactions actually processed: (\d+)", said)
    rate = re.search(r"^tps = ([\d.]+)", said, re.MULTILINE)
    latency = re.search(r"latency average = ([\d.]+) ms", said)
    failed = re.search(r"number of failed transactions: ([1-9]\d*)", said)
    if calls is None or rate is None or latency is None or failed is not None:
        raise ValueError(f"pgbench said: {said[:2000]}")
    return int(calls[1]), float(rate[1]), float(latency[1])
