"""What a choice is worth: accuracy of simple models on its labels, pictures and tables.

May import embedding, methods, images, nearest and common.
"""
