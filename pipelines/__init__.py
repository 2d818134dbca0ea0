"""Sweeps on Ray: from a configuration to shards, workers, merged results and W&B.

Imports everything but cli. Read `settings` first, then `shards`, `run` and `driver`. Also mesa_lm.pipelines, by a link.
"""
