"""Bindings of the compiled CPU kernels in native/, one file per area; `library` opens them. Definitions: ops/reference."""
