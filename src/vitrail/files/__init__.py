"""Bounded readers and writers of files on disk and in the hub's cache. No model code."""
