"""The training room: a plain loop with exact resume, and its optimisers. Nothing here knows a model or its data."""
