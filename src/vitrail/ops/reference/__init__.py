"""Reference definitions in PyTorch of what the compiled kernels compute: attention, quantised products, encoding."""
