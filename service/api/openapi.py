"""What OpenAPI is told beyond what the routes' types say: bodies that are read piece by piece, keys, refusals of all
routes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from tapline.service.api.gate import OPEN_ROUTES
from tapline.service.api.job_schemas import CapturePath
from tapline.service.api.schemas import FlowsRequest

_SCHEMAS = "#/components/schemas/"
_BINARY = {"schema": {"type": "string", "format": "binary"}}
_ERROR = {"content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}ErrorBody"}}}}

CAPTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            "application/octet-stream": _BINARY,
            "application/vnd.tcpdump.pcap": _BINARY,
        },
    }
}
FLOWS_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"{_SCHEMAS}FlowsRequest"}}},
    }
}

JOB_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            **CAPTURE_BODY["requestBody"]["content"],
            "application/json": {"schema": {"$ref": f"{_SCHEMAS}CapturePath"}},
        },
    }
}

_KEYS = {
    "bearer": {"type": "http", "scheme": "bearer", "description": "`Authorization: Bearer KEY`"},
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}


def describe(app: FastAPI, *, has_key: bool) -> None:
    """Complete the description of an application's routes; `has_key`: it asks for the API key."""
    generated = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _completed(generated(), has_key=has_key)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _completed(document: dict[str, Any], *, has_key: bool) -> dict[str, Any]:
    components = document.setdefault("components", {})
    flows = FlowsRequest.model_json_schema(ref_template=_SCHEMAS + "{model}")
    components["schemas"] |= {**flows.pop("$defs"), "FlowsRequest": flows}
    components["schemas"]["CapturePath"] = CapturePath.model_json_schema()
    if has_key:
        components["securitySchemes"] = _KEYS
    for path, operations in document["paths"].items():
        for operation in operations.values():
            answers = operation["responses"]
            answers["403"] = {"description": "A page from elsewhere", **_ERROR}
            answers["421"] = {"description": "Not served under that name", **_ERROR}
            if has_key and path not in OPEN_ROUTES:
                operation["security"] = [{name: []} for name in _KEYS]
                answers["401"] = {"description": "Without the API key", **_ERROR}
    return document
