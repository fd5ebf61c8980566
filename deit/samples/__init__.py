"""What the samples go through: where they come from, their labels, random draws, augmentation, batches, mixing.

May import nothing else of deit.
"""
