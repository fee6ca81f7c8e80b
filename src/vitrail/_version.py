"""The version of the package, in one place that nothing heavy imports."""

__version__ = "0.1.0"
