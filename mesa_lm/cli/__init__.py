"""The command `mesa-lm`, one module per command.

Imports everything else; nothing imports it. Read `main` first.
"""
