"""Floor 3: MLflow and nothing else: runs, pictures, models, lineage."""
