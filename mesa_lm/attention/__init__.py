"""How methods run: kernels, position encodings, the cache, and the passes through a model.

Imports methods. The only place with a softmax. Read `kernels` first, then `pass_plan`: what passes a call takes.
"""
