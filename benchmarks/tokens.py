"""Tokens for benches that train: drawn like words of a language, or real windows of a prepared corpus. Shapes: n sequences, T tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor


def zipf_tokens(n_sequences: int, length: int, vocab_size: int, seed: int = 0) -> Tensor:
    """int64 [n, T]: token r with a probability in proportion to 1 / (r + 1) (Zipf's law), all draws independent."""
    generator = torch.Generator().manual_seed(seed)
    weight_V = 1.0 / torch.arange(1, vocab_size + 1, dtype=torch.float64)
    return torch.multinomial(weight_V, n_sequences * length, replacement=True, generator=generator).view(n_sequences, length)


def corpus_tokens(folder: Path, n_sequences: int, length: int, vocab_size: int) -> Tensor:
    """int64 [n, T]: the beginnings of the first train windows of a prepared corpus.

    Raises:
        DataError: the corpus has too few windows, shorter ones, or more words than the model.
    """
    from data_pipeline.errors import DataError
    from data_pipeline.windows import Windows

    windows = Windows(folder, "train")
    has = (len(windows), windows.seq_len + 1)
    if has[0] < n_sequences or has[1] < length or windows.vocab_size > vocab_size:
        raise DataError(
            f"{folder} has {has[0]} windows of {has[1]} tokens and a vocabulary of {windows.vocab_size};"
            f" asked for were {n_sequences} of {length} and at most {vocab_size}"
        )
    return torch.from_numpy(windows.read(list(windows.ids[:n_sequences]))[:, :length])
