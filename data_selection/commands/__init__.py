"""The command lines of data_selection: a parser that imports nothing slow, then the work.

May import every other room; nobody but the entry scripts and scripts/ imports it.
"""
