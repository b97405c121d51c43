"""Several recipes side by side on equal terms: the same samples in the same order, matched sizes, several seeds, one report."""
