"""The processor: messages, text and images to the tensors of a model's input."""
