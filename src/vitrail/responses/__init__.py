"""Responses: generated ids to text, reasoning and tool calls, at once or streaming."""
