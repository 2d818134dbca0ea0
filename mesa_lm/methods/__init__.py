"""What methods are: their parameters, and where keys are scored; arithmetic only.

Imports nothing of the project but errors. Read `base` first, then `rerope`, the shortest method; `registry` lists all.
"""
