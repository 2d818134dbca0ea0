"""Measure one prompt on one process and on several that share it, each of one thread, in turn.

    python -m mesa_lm.pipelines.development.rank_times --tokens 256k --ranks 1,2 --repeats 3

prints JSON: for each number of processes the median seconds of a prefill (of wall time, and of processor time of the
process with the most) and of a decoded token, the bytes of keys and values that each process holds, and the median of
the ratios of wall time to one process within the same round. Run it on a machine with as many idle cores.
"""

import argparse
import json
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoModelForCausalLM

from mesa_lm.attention.cache_layer import woven_layer
from mesa_lm.demo import MODEL_PATH
from mesa_lm.lengths import parse_length
from mesa_lm.models.attach import extrapolate

STEPS = 8


def measure(rank: int, size: int, store: str, tokens: int, answers: Any) -> None:
    """Run a prompt as one of several processes, and put what it took into a queue."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    model = AutoModelForCausalLM.from_pretrained(MODEL_PATH)
    ids = torch.randint(3, model.config.vocab_size, (1, tokens), generator=torch.Generator().manual_seed(0))
    with extrapolate(model, "mesa", process_group=dist.group.WORLD), torch.no_grad():
        model(ids[:, :2048], logits_to_keep=1)
        dist.barrier()
        start, busy = time.perf_counter(), time.process_time()
        output = model(ids, use_cache=True, logits_to_keep=1)
        prefill_s, busy_s = time.perf_counter() - start, time.process_time() - busy
        start = time.perf_counter()
        for _ in range(STEPS):
            token = output.logits[:, -1:].argmax(-1)
            output = model(token, past_key_values=output.past_key_values, use_cache=True)
        step_s = (time.perf_counter() - start) / STEPS
    layer = woven_layer(output.past_key_values)
    assert layer is not None
    held = sum(
        2 * row.slots * keys.shape[1] * keys.shape[3] * keys.element_size()
        for keys in layer.woven.keys.values()
        for row in layer.woven.rows
    )
    answers.put((rank, prefill_s, busy_s, step_s, held))
    dist.barrier()
    dist.destroy_process_group()


def run(size: int, tokens: int) -> dict[str, Any]:
    """Return what one prompt takes on so many processes; the slowest counts."""
    context = multiprocessing.get_context("spawn")
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        arguments = [(rank, size, str(Path(folder) / "store"), tokens, answers) for rank in range(size)]
        processes = [context.Process(target=measure, args=one) for one in arguments]
        for process in processes:
            process.start()
        found = sorted(answers.get() for _ in processes)
        for process in processes:
            process.join()
    _, prefill_s, busy_s, step_s, held = zip(*found, strict=True)
    return {"prefill_s": max(prefill_s), "busy_s": max(busy_s), "step_s": max(step_s), "held_bytes": list(held)}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=parse_length, default=2**18)
    parser.add_argument("--ranks", type=lambda text: [int(part) for part in text.split(",")], default=[1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    rounds = [{size: run(size, options.tokens) for size in options.ranks} for _ in range(options.repeats)]
    for size in options.ranks:
        own = [one[size] for one in rounds]
        ratios = [one[size]["prefill_s"] / one[options.ranks[0]]["prefill_s"] for one in rounds]
        names = ("prefill_s", "busy_s", "step_s")
        medians = {name: round(statistics.median(one[name] for one in own), 4) for name in names}
        print(
            json.dumps(
                {
                    "ranks": size,
                    "tokens": options.tokens,
                    **medians,
                    "ratio": round(statistics.median(ratios), 3),
                    "ratios": [round(ratio, 3) for ratio in ratios],
                    "held_bytes": own[0]["held_bytes"],
                }
            )
        )


if __name__ == "__main__":
    main()
