"""Adapters (LoRA, DoRA) on any nn.Module: their layers, which layers they go on, PEFT's files. No training, no model."""
