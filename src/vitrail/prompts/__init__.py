"""Messages and prompts: one form of message, chat templates in a sandbox, Mistral's built-in prompt formats. No ids."""
