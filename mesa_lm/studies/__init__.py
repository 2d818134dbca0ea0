"""Studies beside evaluations: `bench` (time, memory), `probe` (hidden states), `theory` (weights written by hand).

Imports everything but pipelines and cli; nothing but cli imports it.
"""
