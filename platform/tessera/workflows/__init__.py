"""Floor 4: each workflow composes the floors below in one readable file."""
