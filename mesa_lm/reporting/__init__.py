"""From results files to statistics, comparisons, leaderboards and figures.

Imports nothing of the project but errors, lengths and demo. Read `results` first.
"""
