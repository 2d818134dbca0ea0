"""Predict from hidden states at which input length a method fails, and measure where it does: `mesa-lm probe`."""
