"""Floor 1: scores as summable statistics and one finish."""
