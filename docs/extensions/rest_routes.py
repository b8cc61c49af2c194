"""The directive `rest-routes`: every route of the REST API, by the schema of the application itself, when the site is
built. The schema lies beside the page, as `openapi.json`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from tapline.service.api.app import create_app
from tapline.service.runtime import Service
from tapline.service.settings import Settings

Schema = dict[str, Any]


def schema() -> Schema:
    """OpenAPI of a service that has a key; nothing is opened or started for it."""
    return create_app(Service(Settings(api_key="shown nowhere", history="none"))).openapi()


class RestRoutes(SphinxDirective):
    """One section for each route: what it does, its parameters, what it takes and answers; then the records."""

    has_content = False

    def run(self) -> list[nodes.Node]:
        """The sections, below the one where the directive stands."""
        return self.parse_text_to_nodes("\n".join(page(schema())), allow_section_headings=True)


def page(document: Schema) -> Iterator[str]:
    """Markdown of routes, in the order of the application, and of every record that they name."""
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            yield from ("", f"### {method.upper()} {path}", "", operation.get("description", operation["summary"]), "")
            yield from _parameters(operation.get("parameters", []))
            yield from _body(operation.get("requestBody", {}))
            yield from _answers(operation["responses"])
    yield from ("", "## Records", "")
    for name, record in sorted(document["components"]["schemas"].items()):
        yield from _record(name, record)


def _parameters(parameters: list[Schema]) -> Iterator[str]:
    if parameters:
        yield from ("| parameter | in | type | what |", "|---|---|---|---|")
        for entry in parameters:
            name = f"`{entry['name']}`" + (" (required)" if entry.get("required") else "")
            what = entry.get("description") or entry["schema"].get("description", "")
            yield _row(name, entry["in"], _type(entry["schema"]), what)
        yield ""


def _body(body: Schema) -> Iterator[str]:
    if body:
        kinds = [f"`{kind}` ({_type(form.get('schema', {}))})" for kind, form in body["content"].items()]
        yield from ("Body: " + ", ".join(kinds) + ".", "")


def _answers(answers: Schema) -> Iterator[str]:
    yield from ("| status | answer |", "|---|---|")
    for status, answer in sorted(answers.items()):
        forms = {_type(form["schema"]) for form in answer.get("content", {}).values() if "schema" in form}
        yield _row(status, ", ".join([answer["description"], *sorted(forms - {"any"})]))
    yield ""


def _record(name: str, record: Schema) -> Iterator[str]:
    yield from (f"(record-{name.lower()})=", f"### {name}", "", record.get("description", ""), "")
    fields = record.get("properties", {})
    if fields:
        yield from ("| field | type | what |", "|---|---|---|")
        for field, form in fields.items():
            yield _row(f"`{field}`", _type(form), form.get("description", ""))
        yield ""


def _type(form: Schema) -> str:
    """A schema in a few words, with links to records."""
    if "$ref" in form:
        name = form["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#record-{name.lower()})"
    parts = form.get("anyOf") or form.get("oneOf") or form.get("allOf")
    if parts:
        return " or ".join(dict.fromkeys(_type(part) for part in parts))
    if "enum" in form or "const" in form:
        return " or ".join(f"`{value}`" for value in form.get("enum", [form.get("const")]))
    kind = form.get("type", "any")
    if kind == "array":
        return f"list of {_type(form.get('items', {}))}"
    return str(form.get("format") or kind)


def _row(*cells: str) -> str:
    return "| " + " | ".join(re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in cells) + " |"


def _write_schema(app: Sphinx, failure: Exception | None) -> None:
    if failure is None and app.builder.format == "html":
        path = Path(app.outdir) / "docs" / "openapi.json"
        path.write_text(json.dumps(schema(), indent=1), encoding="utf-8")


def setup(app: Sphinx) -> dict[str, bool]:
    """What Sphinx calls."""
    app.add_directive("rest-routes", RestRoutes)
    app.connect("build-finished", _write_schema)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
