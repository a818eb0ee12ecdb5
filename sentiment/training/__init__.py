"""Training: the loop, its checkpoints, the recipes, and Ray Train around them."""
