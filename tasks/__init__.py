"""Tasks of lm-eval that run at any length, a folder each: YAML, how its samples are made and scored, and a README.

Imports errors and what `mesa_lm.harness` offers to tasks. Read `passkey_long` first. Also mesa_lm.tasks, by a link.
"""
