"""`GET /docs`: one page that needs nothing else, made from the OpenAPI document."""

from __future__ import annotations

import base64
import hashlib
import re
import shlex
from html import unescape
from html.parser import HTMLParser

import msgspec
import pytest

from serving.config import HttpConfig
from tests.api.conftest import Front, FrontFactory

VOID = {"meta", "br"}
OPTIONAL_END = {"th", "td", "tr"}


class Page(HTMLParser):
    """Notes ids, links and what is loaded; complains about tags that do not close."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self.open: list[str] = []
        self.attributes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in VOID | OPTIONAL_END:
            self.open.append(tag)
        for name, value in attrs:
            self.attributes.add(name)
            if name == "id":
                self.ids.append(value or "")
            if name == "href":
                self.links.append(value or "")

    def handle_endtag(self, tag: str) -> None:
        if tag not in OPTIONAL_END:
            assert self.open.pop() == tag


@pytest.fixture
def html(front: Front) -> str:
    response = front.client.get("/docs")
    assert (response.status_code, response.content_type) == (200, "text/html; charset=utf-8")
    return response.get_data(as_text=True)


def test_the_page_is_well_formed_and_its_links_lead_somewhere(html: str) -> None:
    page = Page()
    page.feed(html)
    page.close()
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.ids)
    assert {link for link in page.links if not link.startswith("#")} == {"/api-doc/openapi.json"}


def test_nothing_is_loaded_and_nothing_runs(front: Front, html: str) -> None:
    page = Page()
    page.feed(html)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "embed", "form", "svg", "base"}
    assert not {name for name in page.attributes if name.startswith("on")} | page.attributes & {
        "src",
        "style",
    }
    assert "@import" not in html and "url(" not in html
    assert "https://" not in html
    policy = front.client.get("/docs").headers["content-security-policy"]
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert policy.startswith("default-src 'none'")


def test_every_operation_and_field_is_on_it(front: Front, html: str) -> None:
    document = front.client.get("/api-doc/openapi.json").json
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            assert f'id="{operation["operationId"]}"' in html
            assert f"<code>{path}</code>" in html
            assert method.upper() in html
    for name in document["components"]["schemas"]["NativeParameters"]["properties"]:
        assert f"<code>{name}</code>" in html


def test_its_commands_work(front: Front, html: str) -> None:
    commands = [unescape(text) for text in re.findall(r"<pre>(.*?)</pre>", html, re.DOTALL)]
    posts = 0
    for command in commands:
        words = shlex.split(command.replace("\\\n", " "))
        [url] = [word for word in words if word.startswith("http://localhost:8080/")]
        if "-d" in words:
            body = words[words.index("-d") + 1]
            msgspec.json.decode(body)
            posts += 1
            path = url.removeprefix("http://localhost:8080")
            if not path.startswith("/v1") and path != "/chat_tokenize":
                response = front.client.post(path, data=body, content_type="application/json")
                assert response.status_code == 200, response.data
    assert posts >= 5


def test_a_key_is_mentioned_only_where_one_is_set(new_front: FrontFactory, html: str) -> None:
    assert "API_KEY" not in html
    front = new_front(http=HttpConfig(api_key="secret"))
    page = front.client.get("/docs", headers={"Authorization": "Bearer secret"}).get_data(as_text=True)
    assert "Bearer $API_KEY" in page
    assert "secret" not in page


def test_a_field_says_what_it_takes_without_noise(html: str) -> None:
    chat = html[html.index('<section id="chat_completions"') : html.index('<section id="completions"')]
    rows = dict(re.findall(r"<tr><td><code>(\w+)</code>(.*?)</tr>", chat))
    assert "integer" in rows["top_logprobs"] and "(0 to 20)" in rows["top_logprobs"]
    assert "null" not in rows["temperature"]
    native = dict(re.findall(r"<tr><td><code>(\w+)</code>(.*?)</tr>", html))
    assert "(default false)" in native["do_sample"]
    assert "340282" not in html and "2147483647" not in html


def test_required_fields_come_first(html: str) -> None:
    section = html[html.index('<section id="chat_completions"') :]
    assert section.index("<code>messages</code> <b>required</b>") < section.index("<code>model</code>")


def test_parts_of_a_path_are_left_to_the_shell(html: str) -> None:
    assert "<pre>curl http://localhost:8080/v1/models/$NAME</pre>" in html
