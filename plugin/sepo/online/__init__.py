"""Online training on sampled responses: token rewards, advantages and loss of RTO over TRL's GRPO trainer."""
