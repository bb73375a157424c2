"""LLaMA Board with our stages: what `sepo webui` and, after `sepo enable`, the host's own `webui` show."""
