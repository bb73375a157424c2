"""Adapters, one package per host framework; no other package imports a host, and adapters hold no arithmetic."""
