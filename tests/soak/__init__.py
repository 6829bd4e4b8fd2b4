"""A long run under mixed load, for what only time shows: leaks, and errors that are rare. `make soak`."""
