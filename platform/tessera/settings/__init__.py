"""Floor 3: frozen, self-checking settings, one class per workflow."""
