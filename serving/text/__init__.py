"""Text on one side, token ids on the other: tokenizing, detokenizing, stops, templates. No torch, no I/O."""
