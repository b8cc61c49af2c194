"""How sessions of ONNX Runtime are opened: the file that a checkpoint records, and nothing kept of it."""

import onnxruntime
import pytest

from tapline.models.checkpoint import ONNX, read_checkpoint
from tapline.service.engines.onnx_session import open_session
from tapline.service.engines.pieces import MM4FLOW_INPUTS


def opened(directory):
    return open_session(directory, read_checkpoint(directory), ONNX, inputs=MM4FLOW_INPUTS, outputs={})


def test_a_session_keeps_no_copy_of_its_file(checkpoint_dir):
    size = (checkpoint_dir / ONNX).stat().st_size
    kept = vars(opened(checkpoint_dir)._session).values()
    assert [value for value in kept if isinstance(value, bytes | bytearray) and len(value) >= size] == []


def test_a_session_of_a_version_that_keeps_none_opens(checkpoint_dir, monkeypatch):
    class Closed(onnxruntime.InferenceSession):
        def __setattr__(self, name, value):
            if name == "_model_bytes" and value == b"":
                raise AttributeError(name)
            super().__setattr__(name, value)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Closed)
    session = opened(checkpoint_dir)
    assert session.provider == "CPUExecutionProvider"
    with pytest.raises(AttributeError):
        session._session._model_bytes = b""
