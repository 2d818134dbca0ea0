"""How methods run: kernels, position encodings, the cache, and the passes through a model.

Imports methods. The only place with a softmax. Read `kernels` first, then `forward`, which strings the passes together.
"""
