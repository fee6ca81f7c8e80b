"""Adapters (LoRA, DoRA) on any nn.Module: layers, choice of modules, PEFT's files. No training, no model."""
