"""The models: vision tower, projector, decoder, and how they are joined."""
