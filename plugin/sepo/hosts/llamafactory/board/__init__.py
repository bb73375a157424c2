"""LLaMA Board with sepo's stages, for `sepo webui` and, after `sepo enable`, the host's own `webui`."""
