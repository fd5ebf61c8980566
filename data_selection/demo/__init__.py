"""Embedded real data: a Fashion-MNIST pool, a small self-supervised ViT, and where both come from."""
