"""Stage `rto` in Axolotl: over its own ``rl: grpo``, with prompts from rows of pairs, conversations or GRPO."""
