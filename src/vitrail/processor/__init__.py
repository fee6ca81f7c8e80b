"""The processor: messages, text and images to the tensors that a model takes."""
