"""Bindings of the compiled CPU kernels in native/, one file per area; library.py loads them. Definitions: ops/reference."""
