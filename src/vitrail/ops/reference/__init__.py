"""PyTorch definitions of what the compiled kernels compute: attention, quantised products, encoding."""
