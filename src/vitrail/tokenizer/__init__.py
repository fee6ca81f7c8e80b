"""Tokenizers: text to ids and back, over tokenizer.json (`fast`) and Mistral's own files (`mistral`). No images."""
