"""Messages and prompts: one message form, sandboxed chat templates, Mistral's built-in prompt formats."""
