"""Finetune an image classifier on a chosen subset."""
