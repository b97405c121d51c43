"""A run continues a text, with the exact key/value cache of the model (one a visit)."""

from __future__ import annotations

import torch

from distributed.errors import RunError
from distributed.run_folder import RunFolder
from distributed.trained import load_trained
from model.generate import generate


def generate_text(
    run: RunFolder,
    prompt: str,
    max_new: int,
    temperature: float,
    top_k: int | None,
    seed: int,
    step: int | None = None,
    repeats: int | None = None,
) -> str:
    """The prompt and what the model adds to it.

    Args:
        run: a run with a checkpoint.
        prompt: text to continue; an empty one starts from the end-of-document token.
        max_new: tokens to add.
        temperature: 0 takes the likeliest token, larger draws more freely.
        top_k: draw among so many likeliest tokens; None: all.
        seed: of the draws; the same seed gives the same text.
        step: which checkpoint; None: the newest.
        repeats: how many times to go through the model's group of layers; None: as configured.

    Raises:
        RunError: no such checkpoint, or nothing to start from. DataError: the tokenizer is not the run's. ModelError: more
            repeats than the model has parameters for.
    """
    trained = load_trained(run, step)
    tokens = trained.tokenizer.encode(prompt)
    if not tokens:
        if trained.tokenizer.end_of_document is None:
            raise RunError("the prompt has no tokens and this tokenizer has no end-of-document token to start from; give a prompt")
        tokens = [trained.tokenizer.end_of_document]
    generator = torch.Generator(device=trained.device).manual_seed(seed)
    prompt_BT = torch.tensor([tokens], device=trained.device)
    answer_BT = generate(trained.model, prompt_BT, max_new, temperature, top_k, generator, repeats)
    return prompt + trained.tokenizer.decode(answer_BT[0, len(tokens) :].tolist())
