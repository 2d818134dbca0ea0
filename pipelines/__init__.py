"""Sweeps on Ray: from a configuration to shards, workers, merged results and W&B.

Imports everything but cli. Read `config` first, then `plan` and `run`. Also mesa_lm.pipelines, by a link.
"""
