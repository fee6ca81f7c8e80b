"""The KV cache: its storage, its blocks and who owns them, and Hugging Face's view of it. No model."""
