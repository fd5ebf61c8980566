"""What a run leaves and comes back from: checkpoints, logs, reasons to stop, where to start.

May import nothing else of deit.
"""
