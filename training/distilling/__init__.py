"""Students of flow checkpoints: what they are taught with, how they learn, which flows they may answer."""
