"""Sources, tokenizers, MDS shards, and the resumable stream that feeds the ranks."""
