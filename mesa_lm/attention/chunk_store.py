"""Keys and values of middle chunks, kept for prompts that share them.

A middle chunk sees the first chunk, or its beginning, and itself. So prompts with the same first chunk and the same
chunk have the same keys and values there, wherever it stands if the method numbers it anew, else at the same place.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

from torch import Tensor

from mesa_lm.methods.geometry import Block

# Per layer the keys, as the pass of the chunk was given them, and the values, each (num_kv_heads, width, head_dim).
ChunkStates = dict[int, tuple[Tensor, Tensor]]

# Prompts in a row that share nothing with those before; then there is nothing to expect from storing more.
_PATIENCE = 16


@dataclass(slots=True)
class _Entry:
    states: ChunkStates
    size: int
    prompt: int  # the last one that used it


class ChunkStore:
    """The chunks used last, up to a number of bytes.

    It belongs to one model with one method and their weights: `clear` it if the weights change.

    Attributes:
        budget_bytes: Most bytes of keys and values.
        held_bytes: Bytes of those that are held.
        hits: Chunks that were taken from the store.
        misses: Chunks that were looked for and not found.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.held_bytes = self.hits = self.misses = 0
        self._entries: OrderedDict[bytes, _Entry] = OrderedDict()
        self._prompt = 0
        self._last_hit = 0

    @staticmethod
    def name(anchor: Tensor, chunk: Tensor, position: int) -> bytes:
        """Return what a chunk is found by.

        Args:
            anchor: (tokens,) of the first chunk that it sees.
            chunk: (tokens,) of the middle chunk.
            position: At which it begins while it is run.
        """
        both = hashlib.sha256(len(anchor).to_bytes(8, "little") + position.to_bytes(8, "little"))
        for tokens in (anchor, chunk):
            both.update(tokens.cpu().numpy().tobytes())
        return both.digest()

    def start_prompt(self) -> None:
        """Note that what follows belongs to another prompt; after many without a shared chunk the store is emptied."""
        self._prompt += 1
        if not self.is_worthwhile:
            self.clear()

    @property
    def is_worthwhile(self) -> bool:
        """Whether chunks were shared lately, or few prompts have been seen so far."""
        return self._prompt - self._last_hit <= _PATIENCE

    def find(self, name: bytes) -> ChunkStates | None:
        """Return a chunk's keys and values, None if it is not held."""
        entry = self._entries.get(name)
        if entry is None:
            self.misses += 1
            return None
        self.hits += 1
        self._last_hit = entry.prompt = self._prompt
        self._entries.move_to_end(name)
        return entry.states

    def keep(self, name: bytes, states: ChunkStates) -> None:
        """Keep a chunk in the place of those not used for longest, unless these belong to the same prompt.

        A prompt that does not fit as a whole thus keeps its beginning, instead of pushing it out with its end.
        """
        size = sum(tensor.nbytes for pair in states.values() for tensor in pair)
        if name in self._entries or size > self.budget_bytes or not self.is_worthwhile:
            return
        while self.held_bytes + size > self.budget_bytes:
            oldest, entry = next(iter(self._entries.items()))
            if entry.prompt == self._prompt:
                return
            del self._entries[oldest]
            self.held_bytes -= entry.size
        copies = {layer: (key.clone(), value.clone()) for layer, (key, value) in states.items()}
        self._entries[name] = _Entry(copies, size, self._prompt)
        self.held_bytes += size

    def clear(self) -> None:
        """Forget all chunks."""
        self._entries.clear()
        self.held_bytes = 0


class Shared(NamedTuple):
    """Neighbouring middle chunks that are all held by a store, or all not.

    Attributes:
        block: The chunks.
        places: Their places among the names, ordered by prompt, then by chunk.
        states: Their keys and values in this order; empty if they are not held.
    """

    block: Block
    places: list[int]
    states: list[ChunkStates]


def split_by_store(
    store: ChunkStore, names: Sequence[bytes], block: Block, unwanted: Sequence[bool]
) -> Iterator[Shared]:
    """Cut a block of middle chunks into those that a store holds for every prompt and those that have to be run.

    Args:
        store: The store.
        names: Of the chunks, ordered by prompt, then by chunk.
        block: The chunks.
        unwanted: For each name whether nothing but keys and values is wanted of it.
    """
    found = [store.find(name) for name in names]
    prompts = range(0, len(names), block.chunks)

    def is_held(chunk: int) -> bool:
        return all(unwanted[start + chunk] and found[start + chunk] is not None for start in prompts)

    for held, run in groupby(range(block.chunks), key=is_held):
        chunks = list(run)
        places = [start + chunk for start in prompts for chunk in chunks]
        states = [states for place in places if held and (states := found[place]) is not None]
        yield Shared(Block(block.start + chunks[0] * block.width, block.width, len(chunks)), places, states)
