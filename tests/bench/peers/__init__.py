"""Programs of other ways to keep chat history in Postgres; each runs in a venv of its own, with its packages."""
