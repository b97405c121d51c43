"""Rank topology, expert exchange, optimizer engine, trainer, checkpoints and metrics."""
