"""The OpenAPI document, from a line for each route, and the same as a page without scripts."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

import gpt2
from gpt2.server.bodies import schema_of
from gpt2.server.gate import PUBLIC, scope_of
from gpt2.server.objects import ErrorObject

JSON = "application/json"
EVENTS = "text/event-stream"
DESCRIPTION = "GPT-2 over HTTP. Whatever it writes is synthetic text, and may be wrong, or offensive."

PAGE = {
    "limit": {"type": "integer", "minimum": 1, "maximum": 100, "default": 20},
    "after": {"type": "string", "description": "The id after which the page begins."},
}
"""Parameters of OpenAI's lists."""
FILES_PAGE = PAGE | {
    "limit": {"type": "integer", "minimum": 1, "maximum": 10_000, "default": 20},
    "order": {"type": "string", "enum": ["asc", "desc"], "default": "desc"},
    "purpose": {"type": "string"},
}
EVENTS_AFTER = {"after": {"type": "integer", "minimum": 0, "description": "As Last-Event-ID: go on behind this one."}}
PURPOSES = ["fine-tune", "assistants", "batch", "vision", "user_data", "evals"]
"""OpenAI's; they all mean the same here."""
UPLOAD = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "format": "binary", "description": "The file."},
        "purpose": {"type": "string", "enum": PURPOSES},
    },
    "required": ["file", "purpose"],
}
"""A form with a file."""
_ERRORS = {"4XX": "It is refused; `param` names the field.", "5XX": "It could not be done; see `code`."}


class Document:
    """Collects the operations."""

    def __init__(self) -> None:
        self._paths: dict[str, dict[str, Any]] = {}
        self._schemas: dict[str, Any] = {}

    def add(
        self,
        method: str,
        path: str,
        summary: str,
        request: type | None = None,
        response: type | None = None,
        *,
        query: Mapping[str, Any] | None = None,
        form: Mapping[str, Any] | None = None,
        media: str = JSON,
        streams: bool = False,
    ) -> None:
        """Enter a route.

        Args:
            method: such as GET.
            path: with `{name}` for parameters.
            summary: what it does.
            request: what its body is, in JSON.
            response: what its answer is, in JSON.
            query: its parameters behind the `?`: name -> schema.
            form: the schema of its body, where that is a form.
            media: of an answer that is not JSON.
            streams: whether the answer may be events instead.
        """
        content: dict[str, Any] = {media: {} if response is None else {"schema": self._reference(response)}}
        if streams:
            content[EVENTS] = {}  # a schema here would be of each event, which ends in [DONE]
        operation: dict[str, Any] = {
            "summary": summary,
            "operationId": method.lower() + re.sub("[/{}]+", "_", path).rstrip("_"),
            "parameters": [
                {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}
                for name in re.findall(r"\{(\w+)\}", path)
            ]
            + [{"name": name, "in": "query", "schema": schema} for name, schema in (query or {}).items()],
            "responses": {"200": {"description": "Done.", "content": content}}
            | {
                status: {"description": text, "content": {JSON: {"schema": self._reference(ErrorObject)}}}
                for status, text in _ERRORS.items()
            },
            "security": [] if scope_of(method, path) == PUBLIC else [{"key": []}, {}],
        }
        if request is not None:
            body = self._reference(request)
            needed = "required" in self._schemas[request.__name__]
            operation["requestBody"] = {"required": needed, "content": {JSON: {"schema": body}}}
        if form is not None:
            operation["requestBody"] = {"required": True, "content": {"multipart/form-data": {"schema": dict(form)}}}
        self._paths.setdefault(path, {})[method.lower()] = operation

    def value(self) -> dict[str, Any]:
        """The document."""
        key = {"type": "http", "scheme": "bearer", "description": "From `gpt2 keys create`; none where there are none."}
        return {
            "openapi": "3.1.0",
            "info": {"title": "gpt2", "version": gpt2.__version__, "description": DESCRIPTION},
            "paths": self._paths,
            "components": {"schemas": self._schemas, "securitySchemes": {"key": key}},
        }

    def page(self) -> str:
        """The document for people, without scripts."""
        parts = []
        for path, methods in self._paths.items():
            for method, facts in methods.items():
                parts.append(f"<h2><code>{method.upper()} {html.escape(path)}</code></h2>")
                parts.append(f"<p>{html.escape(facts['summary'])}</p>")
                for label, content in (("Body", facts.get("requestBody")), ("Answer", facts["responses"]["200"])):
                    schema = (content or {}).get("content", {}).get(JSON, {}).get("schema", {})
                    name = schema.get("$ref", "").rpartition("/")[2]
                    if name:
                        parts.append(f"<h3>{label}</h3>" + _fields(self._schemas[name]))
        style = "body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}td{padding:.1rem 1rem .1rem 0;vertical-align:top}pre{background:#8882;padding:.5rem}:root{color-scheme:light dark}"  # noqa: E501
        head = f"<!doctype html><html lang=en><meta charset=utf-8><title>gpt2 API</title><style>{style}</style>"
        return f"{head}<h1>gpt2 API</h1><p>{html.escape(DESCRIPTION)}</p>" + "".join(parts)

    def _reference(self, kind: type) -> dict[str, str]:
        schema = dict(schema_of(kind))
        self._schemas |= schema.pop("$defs", {})
        self._schemas[kind.__name__] = schema
        return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _fields(schema: Mapping[str, Any]) -> str:
    rows = [
        f"<tr><td><code>{html.escape(name)}</code></td><td>{html.escape(str(facts.get('default', '')))}</td>"
        f"<td>{html.escape(facts.get('description', ''))}</td></tr>"
        for name, facts in schema.get("properties", {}).items()
    ]
    examples = [f"<pre>{html.escape(json.dumps(example))}</pre>" for example in schema.get("examples", [])]
    return f"<table><tr><th>field<th>default<th></tr>{''.join(rows)}</table>{''.join(examples)}"
