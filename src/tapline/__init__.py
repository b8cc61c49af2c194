"""Deep models on live network traffic: `read`, `classify`, `load` and `stream` for Python. The parts lie at the top of
the repository, and here are links to them. Nothing is loaded before it is asked for."""

import importlib
import os
from typing import TYPE_CHECKING

# Read when onnxruntime is loaded, which would otherwise look up its maker's host. This package is loaded before it,
# whatever part wants it.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

if TYPE_CHECKING:
    from tapline.models.checkpoint import CheckpointError as CheckpointError
    from tapline.models.flow import Flow as Flow
    from tapline.models.flow import FlowError as FlowError
    from tapline.models.verdict import Verdict as Verdict
    from tapline.service.engines.engine import EngineError as EngineError
    from tapline.service.python.captures import Flows as Flows
    from tapline.service.python.captures import Results as Results
    from tapline.service.python.captures import Traces as Traces
    from tapline.service.python.captures import classify as classify
    from tapline.service.python.captures import read as read
    from tapline.service.python.flow_model import FlowAttention as FlowAttention
    from tapline.service.python.flow_model import FlowModel as FlowModel
    from tapline.service.python.live_flows import LiveResult as LiveResult
    from tapline.service.python.live_flows import Stream as Stream
    from tapline.service.python.live_flows import stream as stream
    from tapline.service.python.loaded import load as load
    from tapline.service.python.offline import Result as Result
    from tapline.service.python.trace_model import TraceModel as TraceModel
    from tapline.service.sources.bus.transport import TransportError as TransportError
    from tapline.service.sources.packets.capture_error import CaptureError as CaptureError
    from tapline.service.traces.trace_verdict import TraceVerdict as TraceVerdict

    __version__: str

__all__ = [
    "CaptureError",
    "CheckpointError",
    "EngineError",
    "Flow",
    "FlowAttention",
    "FlowError",
    "FlowModel",
    "Flows",
    "LiveResult",
    "Result",
    "Results",
    "Stream",
    "TraceModel",
    "TraceVerdict",
    "Traces",
    "TransportError",
    "Verdict",
    "__version__",
    "classify",
    "load",
    "read",
    "stream",
]

_WHERE = {
    "CaptureError": "service.sources.packets.capture_error",
    "CheckpointError": "models.checkpoint",
    "EngineError": "service.engines.engine",
    "Flow": "models.flow",
    "FlowAttention": "service.python.flow_model",
    "FlowError": "models.flow",
    "FlowModel": "service.python.flow_model",
    "Flows": "service.python.captures",
    "LiveResult": "service.python.live_flows",
    "Result": "service.python.offline",
    "Results": "service.python.captures",
    "Stream": "service.python.live_flows",
    "TraceModel": "service.python.trace_model",
    "TraceVerdict": "service.traces.trace_verdict",
    "Traces": "service.python.captures",
    "TransportError": "service.sources.bus.transport",
    "Verdict": "models.verdict",
    "classify": "service.python.captures",
    "load": "service.python.loaded",
    "read": "service.python.captures",
    "stream": "service.python.live_flows",
}

if not TYPE_CHECKING:  # a type checker is told of no other names

    def __getattr__(name: str) -> object:
        if name == "__version__":
            value = importlib.import_module(f"{__name__}.installation").version()
        elif name in _WHERE:
            value = getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)
        else:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
