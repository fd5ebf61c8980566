"""Exact nearest neighbours of unit vectors: products, their screening, one distinct sample per centroid.

May import common.
"""
