"""Training: one loop with exact resume, its optimizers, and `vitrail train` on conversations."""
