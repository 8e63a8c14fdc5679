"""Floor 3: Ray and nothing else: sessions, blocks, samples, training groups."""
