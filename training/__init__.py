"""Training of hf_vit's models: one Accelerate loop, tasks, recipes and records."""
