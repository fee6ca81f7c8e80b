"""Responses: new ids to text, reasoning and tool calls, whole or as they stream. No model."""
