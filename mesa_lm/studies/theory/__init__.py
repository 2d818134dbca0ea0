"""The paper's theorems as transformers with weights written by hand; the command `mesa-lm theory`.

Read `stack` first.
"""
