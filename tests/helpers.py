"""Inputs and runs that several tests share."""

import torch


def random_ids(length: int, seed: int = 0) -> torch.Tensor:
    """Token ids of a tiny model, without its special tokens."""
    return torch.randint(1, 58, (length,), generator=torch.Generator().manual_seed(seed))


def distinct_ids(length: int, seed: int = 0) -> torch.Tensor:
    """Token ids that do not repeat, for a vocabulary of 211: equal tokens may tie where queries choose their keys."""
    return torch.randperm(209, generator=torch.Generator().manual_seed(seed))[:length] + 1


def decode(model, ids: torch.Tensor, prompt: int) -> torch.Tensor:
    """Logits of a prompt and of the tokens after it, fed one by one."""
    output = model(ids[None, :prompt], use_cache=True)
    logits = [output.logits[0]]
    for token in ids[prompt:]:
        output = model(token.view(1, 1), past_key_values=output.past_key_values)
        logits.append(output.logits[0])
    return torch.cat(logits)


def pad(rows: list[torch.Tensor], side: str) -> dict[str, torch.Tensor]:
    """A padded batch with its attention mask."""
    longest = max(map(len, rows))
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), None) if side == "left" else slice(0, len(row))
        ids[i, place], mask[i, place] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def together_and_alone(model, rows: list[torch.Tensor], side: str, tokens: torch.Tensor) -> list[tuple]:
    """For each row its logits in a padded batch and by itself, the decoded tokens included (left padding only)."""
    batch = pad(rows, side)
    tokens = tokens if side == "left" else tokens[:0]
    output = model(**batch, use_cache=True)
    steps, mask = [output.logits], batch["attention_mask"]
    for token in tokens:
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        output = model(
            token.expand(len(rows), 1), attention_mask=mask, past_key_values=output.past_key_values, use_cache=True
        )
        steps.append(output.logits)
    logits = torch.cat(steps, dim=1)
    return [
        (logits[i, mask[i].bool()], decode(model, torch.cat([row, tokens]), len(row))) for i, row in enumerate(rows)
    ]
