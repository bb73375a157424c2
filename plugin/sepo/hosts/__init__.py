"""One package per host framework; nothing outside imports a host, and an adapter holds no arithmetic."""
