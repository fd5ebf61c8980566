"""Pools of images: data sets, folders and lists, their names and labels, and the files they are downloaded from.

May import common.
"""
