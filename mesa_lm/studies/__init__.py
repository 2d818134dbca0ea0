"""Studies beside evaluations: `bench`, `probe`, `theory` and `key_spans`.

They are of time and memory, of hidden states, of weights written by hand, and of the tokens that long context helps to
predict. Imports everything but pipelines and cli; nothing but cli imports it.
"""
