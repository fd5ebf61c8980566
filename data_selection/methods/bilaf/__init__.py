"""BiLAF's boundary stage: pseudo-classes around given cores, their density, boundary samples step by step.

May import nearest and common; it takes core ids and knows no other method.
"""
