"""recalld on Citus: skipped where no Postgres with that extension is installed.

`TEST_CITUS=1` runs the other suites on it too, such as tests/contract.
"""
