"""What the user says, turned into tensors: messages, pictures, tokens. Import from the modules; nothing here."""
