"""From images to features: backbones and their weights, the forward pass, extraction to a file.

May import images, nearest and common.
"""
