"""The seam to transformers: attaching a method to a model, and what is known of each model family.

Imports attention and methods. Read `attach` first, then `pass_runner`, which runs a call, and `families`.
"""
