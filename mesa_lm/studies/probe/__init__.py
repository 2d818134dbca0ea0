"""Hidden states that tell where a method fails; the command `mesa-lm probe`.

Read `probe_model` first.
"""
