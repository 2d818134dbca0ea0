"""Time and memory of methods; the command `mesa-lm bench`.

Read `benchmark` first.
"""
