"""Drawing text from a model: cache, sampling, stopping, the loop and its streams. No model lives here."""
