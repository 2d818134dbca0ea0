"""Which tokens of a text are key: LongPPL's long-short context contrast under an evaluator model."""
