"""Models: vision tower, projector, decoder, and the classes that join them."""
