"""The OpenAPI document, and Schemathesis: what it makes of the document finds no 5xx and no answer of another form."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from gpt2.config import GPT2Config
from gpt2.jobs.records import Order, Records
from gpt2.server import versions
from gpt2.server.app import create_app, new_service
from gpt2.server.gate import PUBLIC, scope_of
from gpt2.server.settings import Settings
from servers import serving

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
CHECKS += ",negative_data_rejection,unsupported_method"


@pytest.mark.parametrize(
    ("phases", "examples"),
    [("fuzzing", 1), pytest.param("coverage,fuzzing", 100, marks=[pytest.mark.slow, pytest.mark.timeout(3000)])],
)
def test_schemathesis_finds_no_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, phases: str, examples: int
) -> None:
    """Against a real server with a small random model, a job and a file, whose names it is told."""
    pytest.importorskip("schemathesis")
    from gpt2.gpt import new_model, save_model

    home = tmp_path / "home"
    save_model(new_model(GPT2Config(n_vocab=50257, n_ctx=64, n_embd=8, n_head=1, n_layer=1)), home / "models" / "tiny")
    records = Records(home / "jobs.sqlite3")
    job = records.create(Order("one", ("file-0",)))
    records.ask(job.id, "cancel")
    new = records.new_file_path()
    new.write_text("Mary had a little lamb.")
    file = records.add_file(new, "lamb.txt", "fine-tune")
    config = tmp_path / "schemathesis.toml"
    known = {"name": "tiny", "job_id": job.id, "file_id": file.id}
    config.write_text("[parameters]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in known.items()))
    with serving(home, "--model", "tiny") as server:
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(config), "run"]
        command += [server.url + "/openapi.json", "--checks", CHECKS, "--phases", phases, "--seed", "1", "--no-color"]
        command += ["--max-examples", str(examples), "--workers", "2", "--request-timeout", "20"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=dict(os.environ))
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
        found = re.search(r"(\d+) generated", done.stdout)
        assert found
        assert int(found[1]) > 36 * examples / 2
        assert httpx.get(server.url + "/ready").status_code == 200
        assert "Traceback" not in server.log


def test_every_route_stands_in_the_document_with_its_parameters_and_who_may() -> None:
    service = new_service(Settings())
    app = create_app(service)
    service.keys.create("me", "query")

    import asyncio

    async def ask() -> dict:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as session:
            key = service.keys.create("you", "query")
            return (await session.get("/openapi.json", headers={"authorization": f"Bearer {key}"})).json()

    document = asyncio.run(ask())
    for route in app.app.routes:  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}:
            operation = document["paths"][route.path][method.lower()]
            named = {each["name"] for each in operation["parameters"] if each["in"] == "path"}
            assert named == set(re.findall(r"{(\w+)}", route.path))
            assert (operation["security"] == []) == (scope_of(method, route.path) == PUBLIC)
            assert {"200", "4XX", "5XX"} <= set(operation["responses"])
    for name in re.findall(r'"#/components/schemas/([^"]+)"', json.dumps(document)):
        assert name in document["components"]["schemas"]
    assert (
        "file"
        in document["paths"]["/v1/files"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"][
            "properties"
        ]
    )
    query = document["components"]["schemas"]["QueryRequest"]["properties"]
    assert query["max_tokens"]["description"].startswith("At most this many tokens")


def test_the_gate_asks_for_the_scope_of_the_contract() -> None:
    for version, module in versions.VERSIONS.items():
        for route in versions.routes_of(module):
            assert scope_of(route.method, f"/{version}{route.path}") == route.scope
