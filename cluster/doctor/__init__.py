"""What `doctor` looks at: one Check a finding, each fault with what to do about it."""
