"""What trains the demo model, or measures what no user has to; not part of a wheel.

Imports everything but cli; nothing imports it.
"""
