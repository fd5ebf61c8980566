"""What an experiment needs of the trainer, and the commands around it."""
