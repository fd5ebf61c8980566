"""What every room uses: errors, checks, files, paths, progress, processes, feature tables and subset lists.

May import nothing else of the project.
"""
