"""Deep models on live network traffic. The parts lie at the top of the repository, and here are links to them."""

import os

# Read when onnxruntime is loaded, which would otherwise look up its maker's host. This package is loaded before it,
# whatever part wants it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
