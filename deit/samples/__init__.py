"""What the samples go through: where they come from, their labels, random draws, augmentation, mixing.

May import nothing else of deit.
"""
