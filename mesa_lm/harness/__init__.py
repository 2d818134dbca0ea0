"""The seam to lm-eval: the model `mesa-hf`, the task manager, and the hook that makes stock lm-eval find both.

Imports models and what is below. Read `model` first.
"""
