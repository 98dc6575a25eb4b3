"""Doing it: a plan's tasks run block by block, on this machine's threads or on a Dask cluster, and report back."""
