"""Recurrent mixture-of-experts language models: pure modules and their configuration."""
