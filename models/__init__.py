"""What the models read and compute: flows, their encoding, the networks and the checkpoint format."""

import os

# Read when onnxruntime is loaded, which would otherwise look up its maker's host. This package is loaded before it,
# whatever part wants it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
