"""The offline side of tapline: datasets, training, evaluation and export of checkpoints."""

import models  # noqa: F401 - what it sets for the process comes before any library
