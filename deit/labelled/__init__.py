"""From labels to answers: what stands around the trainer for somebody with a folder of images and labels for some.

train_on_labels reads what annotators give back, trains, and leaves a model and a report in the folder of
data_selection's choose_images; predict_images asks that model.
"""
