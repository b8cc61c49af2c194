"""`/v1/models`: what the repository holds, what serves, and loading and unloading without a gap."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import FastAPI, Query

from tapline.models.checkpoint import Checkpoint, CheckpointError, TracegramCheckpoint
from tapline.service.api import schemas
from tapline.service.api.errors import ApiError, ErrorBody
from tapline.service.engines.engine import EngineError
from tapline.service.inference.repository import UnknownModelError
from tapline.service.inference.served import ModelBusyError
from tapline.service.runtime import Service

_ERRORS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorBody} for status in (404, 409, 422)}
Version = Annotated[str | None, Query(max_length=32, description="the newest where none is given")]


@contextlib.contextmanager
def model_errors() -> Iterator[None]:
    """Turn what is wrong with a model into 404, 409 or 422."""
    try:
        yield
    except UnknownModelError as error:
        raise ApiError(404, "no_model", str(error)) from None
    except ModelBusyError as error:
        raise ApiError(409, "model_busy", str(error)) from None
    except (CheckpointError, EngineError) as error:
        raise ApiError(422, "bad_checkpoint", str(error)) from None


def add_models(app: FastAPI, service: Service) -> None:
    """Add the routes."""

    @app.get("/v1/models", tags=["models"], response_model=schemas.Models)
    async def models() -> dict[str, Any]:
        """The models of the repository, and those of them that serve."""
        return {"models": _models(service)}

    @app.post("/v1/models/{name}/load", tags=["models"], response_model=schemas.Model, responses=_ERRORS)
    async def load(name: str, version: Version = None) -> dict[str, Any]:
        """Load a model, or swap the one that serves for another version, with no gap.

        It is warmed up first. If it cannot serve, the one that served goes on. A trace model serves beside those of
        other names. Where it takes the place of another version, `closed_windows` live windows were open, and are
        closed with the verdicts of that one.
        """
        with model_errors():
            closed = await service.load_model(name, version)
        entry = next(entry for entry in _models(service) if entry["name"] == name)
        return entry if closed is None else {**entry, "closed_windows": closed}

    @app.post("/v1/models/{name}/unload", tags=["models"], response_model=schemas.Models, responses=_ERRORS)
    async def unload(name: str) -> dict[str, Any]:
        """Serve a model no more: flows that wait for it are finished first, open windows of a trace model get their
        verdicts. There may be no trace model, but always the default flow model.
        """
        with model_errors():
            await service.unload_model(name)
        return {"models": _models(service)}


def _models(service: Service) -> list[dict[str, Any]]:
    repository = service.models.repository
    loaded: dict[str, Checkpoint | TracegramCheckpoint] = {**service.models.loaded()}
    scorers = service.trace_models.scorers
    loaded |= {name: scorer.checkpoint for name, scorer in scorers.items()}
    providers = service.models.providers() | {name: scorer.engine.provider for name, scorer in scorers.items()}
    cascades = service.models.cascades()
    entries = []
    for name in sorted({*repository.names(), *loaded}):
        entry: dict[str, Any] = {"name": name, "versions": repository.versions(name), "default": False}
        checkpoint = loaded.get(name)
        if checkpoint is not None:
            fields = ("version", "kind", "labels", "min_packets", "metrics")
            entry |= {field: getattr(checkpoint, field, None) for field in fields}
            entry["min_flows"] = checkpoint.trace.min_flows if isinstance(checkpoint, TracegramCheckpoint) else None
            entry["default"] = name == service.models.default
            entry["provider"] = providers[name]
            entry["cascade"] = cascades.get(name)
        entries.append(entry)
    return entries
