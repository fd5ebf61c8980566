"""What learns: model, optimiser, schedule and loss as the flags ask, and the head by itself.

May import deit.engine, deit.losses, deit.runs and deit.samples.
"""
