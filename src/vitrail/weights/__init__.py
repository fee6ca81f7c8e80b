"""From a checkpoint's files to a model's parameters and back. Nothing here knows a model family's mathematics."""
