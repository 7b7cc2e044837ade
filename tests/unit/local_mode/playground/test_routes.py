"""The page's files and the three routes that only look."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from starlette.applications import Starlette
from starlette.testclient import TestClient

from local_mode.contracts import Record
from local_mode.control.arns import Arns
from local_mode.control.resources import SqliteResources
from local_mode.playground import Playground

STATIC = Path(__file__).resolve().parents[4] / "local_mode/playground/static"
METRICS = "textgen_kv_blocks 10\ntextgen_kv_blocks_free 5\ntextgen_sequences_running 2\n"
PAGES = {"http://a": (200, METRICS), "http://b": (200, METRICS), "http://foreign": (404, "no such page")}


class Served:
    """Containers by endpoint or component, and what each answers."""

    def __init__(self) -> None:
        self.urls: dict[str, list[str]] = {}

    def base_urls(self, endpoint: str, component: str | None = None) -> list[str]:
        return self.urls.get(component or endpoint, [])


def answer(request: httpx.Request) -> httpx.Response:
    base, _, path = str(request.url).rpartition("/")
    if path != "metrics" or base not in PAGES:
        raise httpx.ConnectError("nobody there")
    status, text = PAGES[base]
    return httpx.Response(status, text=text)


class World:
    def __init__(self, state_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.resources = SqliteResources(state_dir, Arns("us-east-1"))
        self.containers = Served()
        self.logs = state_dir / "logs"
        real = httpx.AsyncClient
        monkeypatch.setattr(
            httpx, "AsyncClient", lambda **options: real(transport=httpx.MockTransport(answer), **options)
        )
        playground = Playground(resources=self.resources, containers=self.containers, logs=self.logs)
        self.client = TestClient(Starlette(routes=playground.routes))

    def endpoint(self, name: str, status: str = "InService", **members: object) -> None:
        record: Record = {
            "EndpointName": name,
            "EndpointStatus": status,
            "EndpointConfigName": "c",
            "CreationTime": 1.0,
        }
        self.resources.add("endpoint", name, record | members)

    def get(self, path: str) -> httpx.Response:
        return self.client.get(path)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    made = World(tmp_path, monkeypatch)
    yield made
    made.resources.close()


def test_the_page_may_use_nothing_but_what_comes_with_it(world: World) -> None:
    page = world.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    assert "require-trusted-types-for 'script'" in policy
    links = re.findall(r'(?:src|href)="([^"#]+)"', page.text)
    assert set(links) == {"/playground/icon.svg", "/playground/style.css", "/playground/app.js"}
    assert "style=" not in page.text
    assert "<script>" not in page.text


def test_every_file_is_served_as_what_it_is_and_every_import_exists(world: World) -> None:
    kinds = {".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".html": "text/html"}
    for path in STATIC.iterdir():
        served = world.get(f"/playground/{path.name}")
        assert served.text == path.read_text()
        assert served.headers["content-type"].startswith(kinds[path.suffix])
        assert served.headers["x-content-type-options"] == "nosniff"
        for imported in re.findall(r'from "\./([^"]+)"', served.text):
            assert (STATIC / imported).is_file()


@pytest.mark.parametrize(
    "name", ["routes.py", "..%2Froutes.py", "%2e%2e/routes.py", ".", "index.html%00", "nothing.js"]
)
def test_nothing_else_is_served(world: World, name: str) -> None:
    assert world.get(f"/playground/{name}").status_code == 404


def test_scripts_never_make_markup_of_text_nor_ask_elsewhere() -> None:
    for path in STATIC.glob("*.js"):
        text = path.read_text()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "DOMParser"):
            assert word not in text, f"{path.name}: {word}"
        assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert "url(" not in (STATIC / "style.css").read_text()
    assert "@import" not in (STATIC / "style.css").read_text()


def test_endpoints_at_a_glance(world: World) -> None:
    reason = "The primary container did not pass the ping health check. " * 5
    variant = {
        "VariantName": "all",
        "CurrentInstanceCount": 1,
        "DesiredInstanceCount": 2,
        "CurrentWeight": 1.0,
    }
    world.endpoint("bad", "Failed", FailureReason=reason)
    world.endpoint(
        "good",
        ProductionVariants=[variant | {"DeployedImages": [{"SpecifiedImage": "ours"}]}],
        _Deployed={
            "config": {"ProductionVariants": [{"VariantName": "all", "ModelName": "m"}]},
            "models": {"m": {"PrimaryContainer": {"Environment": {"HF_TOKEN": "hf_secret"}}}},
        },
    )
    world.resources.add(
        "inference-component",
        "ic",
        {
            "InferenceComponentName": "ic",
            "EndpointName": "good",
            "InferenceComponentStatus": "Creating",
            "VariantName": "all",
            "Specification": {"ModelName": "m", "Container": {"Environment": {"HF_TOKEN": "hf_secret"}}},
            "RuntimeConfig": {"CurrentCopyCount": 0, "DesiredCopyCount": 1},
        },
    )
    told = world.get("/playground/endpoints")
    assert "hf_secret" not in told.text
    bad, good = told.json()
    assert (bad["status"], bad["reason"]) == ("Failed", reason)
    assert good["variants"] == [
        {"name": "all", "model": "m", "images": ["ours"], "instances": 1, "wanted": 2, "weight": 1.0}
    ]
    component = good["components"][0]
    assert (component["name"], component["status"], component["copies"]) == ("ic", "Creating", 0)


def test_numbers_of_an_endpoint_are_those_of_its_containers(world: World) -> None:
    world.endpoint("e")
    world.containers.urls = {
        "e": ["http://a", "http://gone", "http://b", "http://foreign"],
        "ic": ["http://a"],
    }
    told = world.get("/playground/endpoints/e/metrics").json()
    assert (told["containers"], told["answered"], told["running"], told["kv_use"]) == (4, 2, 4, 0.5)
    assert told["at_s"] > 0
    assert world.get("/playground/endpoints/e/metrics?component=ic").json()["containers"] == 1
    world.containers.urls = {}
    told = world.get("/playground/endpoints/e/metrics").json()
    assert (told["containers"], told["answered"], told["running"]) == (0, 0, None)


def test_logs_of_an_endpoint_and_of_its_components(world: World) -> None:
    world.endpoint("e")
    world.resources.add("inference-component", "ic", {"InferenceComponentName": "ic", "EndpointName": "e"})
    for path in (
        "Endpoints/e/all/i-1.log",
        "InferenceComponents/ic/all/i-2.log",
        "Endpoints/other/all/i-3.log",
    ):
        file = world.logs / "aws/sagemaker" / path
        file.parent.mkdir(parents=True)
        file.write_text(f"{path}\n")
    told = world.get("/playground/endpoints/E/logs").json()
    assert [line["text"] for line in told["lines"]] == [
        "Endpoints/e/all/i-1.log",
        "InferenceComponents/ic/all/i-2.log",
    ]
    assert world.get(f"/playground/endpoints/e/logs?after={told['cursor']}").json()["lines"] == []
    wrong = world.get("/playground/endpoints/e/logs?after=/etc/passwd")
    assert wrong.status_code == 400
    assert "is no cursor" in wrong.json()["message"]


@pytest.mark.parametrize("what", ["metrics", "logs"])
def test_an_unknown_endpoint_is_told(world: World, what: str) -> None:
    told = world.get(f"/playground/endpoints/nobody/{what}")
    assert told.status_code == 404
    assert "Could not find endpoint" in told.json()["message"]


def test_the_routes_only_look(world: World) -> None:
    for path in ("/", "/playground/endpoints", "/playground/endpoints/e/metrics", "/playground/app.js"):
        assert world.client.post(path).status_code == 405
    assert json.loads(world.get("/playground/endpoints").text) == []
