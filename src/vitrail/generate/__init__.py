"""Text generation: prompts, runners, sampling, stopping, streams, and reuse of a prompt's cache."""
