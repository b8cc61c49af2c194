"""What OpenAPI is told beyond what the routes' types say: bodies that are read piece by piece, keys, refusals of all
routes."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from tapline.service.access.scopes import wanted_scope
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
        for method, operation in operations.items():
            wanted = wanted_scope(method.upper(), path)
            answers = operation["responses"]
            answers["403"] = {"description": "A page from elsewhere, or a key without the scope", **_ERROR}
            if path.startswith("/v1/"):
                answers.setdefault(
                    "422", {"description": "A parameter is wrong, or there is none of its name", **_ERROR}
                )
            answers["421"] = {"description": "Not served under that name", **_ERROR}
            if has_key and wanted != "open":
                operation["security"] = [{name: [wanted]} for name in _KEYS]
                operation["description"] = (
                    f"{operation.get('description', '')}\n\nA key of the scope *{wanted}*.".strip()
                )
                answers["401"] = {"description": "Without a key", **_ERROR}
                answers["429"] = {"description": "Too many requests of a key, or too many wrong keys", **_ERROR}
    return document
