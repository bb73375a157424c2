"""What a trained policy does on held-out pairs and prompts; no host is imported here."""
