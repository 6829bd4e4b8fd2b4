"""How fast recalld is, as ratios to references that are measured in the same run. `make bench`."""
