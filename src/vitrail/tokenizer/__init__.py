"""Tokenizers: text to ids and back, from tokenizer.json (`fast`) or Mistral's own files (`mistral`)."""
