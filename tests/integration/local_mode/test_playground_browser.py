"""The playground in a real browser, on a real emulator with a real container: what a visitor does, and what they see.

Without Chromium these tests are skipped, and say so in pytest's summary; `REQUIRE_BROWSER=1` makes that a failure.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from local_mode.runtime import event_stream
from tests.integration.local_mode.playground_visit import SHOWN, Visit, visiting

FIGURES = re.compile(
    r"first token \d+ ms · [\d.]+ tokens/s · \d+ in \(\d+ cached\) · (\d+) out · finish: (\w+)"
)


@pytest.fixture(scope="module")
def visit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    with visiting(tmp_path_factory.mktemp("playground")) as opened:
        yield opened


def test_the_empty_page_leads_to_an_endpoint_that_is_one(visit: Visit) -> None:
    assert "Create demo endpoint" in visit.empty
    assert "None yet" in visit.empty
    sagemaker = visit.local.client("sagemaker")
    endpoint = sagemaker.describe_endpoint(EndpointName="demo")
    assert endpoint["EndpointStatus"] == "InService"
    config = sagemaker.describe_endpoint_config(EndpointConfigName=endpoint["EndpointConfigName"])
    model = sagemaker.describe_model(ModelName=config["ProductionVariants"][0]["ModelName"])
    assert model["PrimaryContainer"]["Environment"] == {"HF_MODEL_ID": "demo"}
    assert visit.page.evaluate("document.querySelector('#targets input').checked")
    assert "1 of 1 instances" in visit.page.evaluate("document.querySelector('.target').innerText")


def test_a_chat_grows_and_its_figures_are_shown(visit: Visit) -> None:
    visit.mode("chat")
    visit.page.evaluate(
        "window.lengths = new Set(); window.observer = new MutationObserver(() =>"
        " lengths.add(document.getElementById('talk').textContent.length));"
        " observer.observe(document.getElementById('talk'), {childList: true, subtree: true, characterData: true})"
    )
    text = visit.answer("Tell me a story about a fox.", max_tokens=48, temperature=0, system="Be kind.")
    assert visit.page.evaluate("lengths.size") > 10
    figures = FIGURES.fullmatch(visit.figures())
    assert figures is not None, visit.figures()
    client = openai.OpenAI(base_url=f"{visit.url}endpoints/demo/openai/v1", api_key="local")
    with client:
        other = client.chat.completions.create(
            model="demo",
            max_tokens=48,
            temperature=0,
            messages=[
                {"role": "system", "content": "Be kind."},
                {"role": "user", "content": "Tell me a story about a fox."},
            ],
        )
    assert text == other.choices[0].message.content
    assert other.usage is not None
    assert int(figures[1]) == other.usage.completion_tokens
    assert figures[2] == other.choices[0].finish_reason
    # The next turn has this one as its beginning, which the cache knows.
    visit.answer("And then?", max_tokens=5, system="Be kind.")
    cached = re.search(r"\((\d+) cached\) · 5 out · finish: length", visit.figures())
    assert cached is not None and int(cached[1]) > 32, visit.figures()


def test_occupancy_is_drawn_as_it_changes(visit: Visit) -> None:
    visit.mode("chat")
    for _ in range(60):  # the page looks once in a while, and an answer may be over between two looks
        visit.answer("Tell me a long story.", max_tokens=400)
        if re.search(r"highest [1-9]", visit.chart("Running")):
            break
    visit.page.wait_for(
        "/now 0, highest [1-9]/.test(document.querySelector('svg[aria-label^=Running]').getAttribute('aria-label'))"
    )
    assert re.search(r"now 0 %, highest [\d.]*[1-9]", visit.chart("KV cache")), visit.chart("KV cache")
    assert re.search(r"highest [1-9]", visit.chart("Tokens/s")), visit.chart("Tokens/s")
    generated = visit.page.evaluate("document.getElementById('counters').innerText")
    assert re.search(r"Generated tokens\s+[1-9]", generated)


@pytest.mark.parametrize("mode", ["chat", "generate"])
@pytest.mark.parametrize("by", ["button", "Escape"])
def test_stop_ends_the_generation_itself(visit: Visit, mode: str, by: str) -> None:
    visit.mode(mode)
    before = visit.page.evaluate("document.querySelectorAll('#log-lines div').length")
    # Within the page: a round trip from here could be longer than the answer.
    press = (
        "document.getElementById('stop').click()"
        if by == "button"
        else "document.dispatchEvent(new KeyboardEvent('keydown', {key: 'Escape'}))"
    )
    visit.page.evaluate(
        "window.stopper = new MutationObserver(() => {"
        " const text = document.querySelector('[aria-busy=true] .text');"
        f" if (text && text.childNodes.length >= 3) {{ stopper.disconnect(); {press}; }} }});"
        " stopper.observe(document.getElementById('talk'), {childList: true, subtree: true})"
    )
    visit.ask("Tell me a story about a fox." if mode == "chat" else "Once upon a time", max_tokens=1500)
    visit.complete()
    assert "finish: stopped" in visit.figures()
    deadline_s = time.monotonic() + 5
    while visit.running():
        assert time.monotonic() < deadline_s, "the engine goes on"
    visit.page.wait_for(
        f"[...document.querySelectorAll('#log-lines div')].slice({before})"
        ".some((line) => line.textContent.includes('status=499'))"
    )
    assert visit.answer("Hello", max_tokens=3) != ""


def test_errors_are_shown_as_they_came(visit: Visit) -> None:
    visit.mode("chat")
    visit.ask("Too long", max_tokens=100000)
    visit.complete()
    shown = visit.page.evaluate(f"{SHOWN}.querySelector('[role=alert]').innerText")
    assert "maximum context length is 2048 tokens" in shown
    for words in (
        r"status\s+400",
        r"type\s+invalid_request_error",
        r"param\s+max_tokens",
        r"request_id\s+\w+",
    ):
        assert re.search(words, shown), shown
    assert visit.page.evaluate("document.getElementById('draft').value") == "Too long"
    visit.mode("generate")
    visit.ask("Too long", max_tokens=100000)
    visit.complete()
    shown = visit.page.evaluate(f"{SHOWN}.querySelector('[role=alert]').innerText")
    assert "must be <= 2048" in shown
    for words in (
        r"status\s+424",
        r"container's status\s+422",
        r"type\s+validation",
        "CLIENT_ERROR_FROM_MODEL",
    ):
        assert re.search(words, shown), shown


def test_generate_goes_over_the_response_stream(visit: Visit) -> None:
    visit.mode("generate")
    text = visit.answer("Once upon a time", max_tokens=30, seed=7, temperature=0.8, stop="\nnever\n")
    assert "30 out · finish: length" in visit.figures()
    body = {
        "inputs": "Once upon a time",
        "parameters": {"max_new_tokens": 30, "seed": 7, "temperature": 0.8, "return_full_text": False},
    }
    reply = visit.local.client("sagemaker-runtime").invoke_endpoint(
        EndpointName="demo", ContentType="application/json", Body=json.dumps(body)
    )
    told = json.loads(reply["Body"].read())
    assert text == (told[0] if isinstance(told, list) else told)["generated_text"]


def test_streams_are_read_right_wherever_they_are_cut(visit: Visit) -> None:
    """By the page's own modules, for every single cut, and byte by byte."""
    events = ['{"a": "Grüße 🦊"}', "[DONE]"]
    plain = (
        b"".join(f"data: {event}\n\n".encode() for event in events)
        + b": comment\n\nevent: x\r\ndata:1\r\n\r\n"
    )
    framed = event_stream.payload_part(plain[:9]) + event_stream.payload_part(plain[9:])
    failed = framed + event_stream.exception("ModelStreamError", Message="it broke", ErrorCode="StreamBroken")
    read = """
        const { events, payloads } = await import('/playground/streams.js');
        async function* cut(bytes, places) {
          let start = 0;
          for (const end of [...places, bytes.length]) { yield bytes.subarray(start, end); start = end; }
        }
        const all = async (stream) => { const found = []; for await (const each of stream) found.push(each); return found; };
        const failure = async (stream) => { try { await all(stream); return null; } catch (error) { return error; } };
        const expected = JSON.stringify(expectedEvents);
        const wrong = [];
        const check = (found, what) => { if (JSON.stringify(found) !== expected) wrong.push([what, found]); };
        for (let at = 0; at <= plain.length; at += 1) check(await all(events(cut(plain, [at]))), `sse ${at}`);
        for (let at = 0; at <= framed.length; at += 1) check(await all(events(payloads(cut(framed, [at])))), `frames ${at}`);
        check(await all(events(payloads(cut(framed, framed.keys())))), 'byte by byte');
        for (let at = 1; at < framed.length; at += 1) {
          if (at !== boundary && !await failure(payloads(cut(framed.subarray(0, at), [])))) wrong.push(`end at ${at}`);
        }
        const error = await failure(payloads(cut(failed, [])));
        return { wrong, message: error.message, type: error.members.type };
    """
    arrays = {"plain": plain, "framed": framed, "failed": failed}
    given = "".join(f"const {name} = new Uint8Array({list(content)});" for name, content in arrays.items())
    given += f"const boundary = {len(event_stream.payload_part(plain[:9]))};"
    given += f"const expectedEvents = {json.dumps([*events, '1'])};"
    told = visit.page.evaluate(f"(async () => {{ {given} {read} }})()")
    assert told == {"wrong": [], "message": "it broke", "type": "ModelStreamError"}


def test_nothing_that_is_said_becomes_markup(visit: Visit) -> None:
    visit.mode("chat")
    visit.answer("<img src=x onerror='document.title=1'><b>hi</b>", max_tokens=3)
    assert visit.page.evaluate("document.querySelector('#talk img, #talk b')") is None
    assert "<b>hi</b>" in visit.page.evaluate("document.getElementById('talk').innerText")


def test_logs_follow_are_filtered_and_pause(visit: Visit) -> None:
    visit.mode("chat")
    page = visit.page
    page.wait_for("document.getElementById('log-lines').innerText.includes('engine ready')")
    page.click("#log-filter")
    page.write("engine ready")
    page.wait_for("document.getElementById('log-lines').childElementCount === 1")
    assert re.fullmatch(r"1 of \d+ lines", page.evaluate("document.getElementById('log-count').textContent"))
    page.evaluate(
        "(() => { const field = document.getElementById('log-filter'); field.value = '';"
        " field.dispatchEvent(new Event('input')); })()"
    )
    count = page.evaluate("document.getElementById('log-lines').childElementCount")
    page.click("#log-pause")
    visit.answer("Hello", max_tokens=2)
    page.evaluate("performance.clearResourceTimings()")
    # The log is looked for as often as idle metrics are.
    page.wait_for(
        "performance.getEntriesByType('resource').filter(({name}) => name.includes('/metrics')).length > 2"
    )
    assert page.evaluate("document.getElementById('log-lines').childElementCount") == count
    page.click("#log-pause")
    page.wait_for(f"document.getElementById('log-lines').childElementCount > {count}")


@pytest.mark.parametrize("mode", ["chat", "generate"])
@pytest.mark.parametrize("client", ["curl", "boto3", "openai"])
def test_the_code_runs_as_it_stands(visit: Visit, tmp_path: Path, client: str, mode: str) -> None:
    visit.mode(mode)
    page = visit.page
    page.evaluate("document.getElementById('parameters').elements.max_tokens.value = '4'")
    page.evaluate("document.getElementById('parameters').elements.stop.value = `it's\\n\"'`")
    page.evaluate("document.getElementById('draft').value = ''")
    page.click("#draft")
    page.write('It\'s "quoted" \\ $HOME `x` 🦊')
    page.click("#code-tab")
    page.click(f"label:has(input[value={client}])")
    text = page.evaluate("document.getElementById('snippet').textContent")
    page.click("#logs-tab")
    program = ["sh", "-c", text] if client == "curl" else [sys.executable, "-c", text]
    if client == "openai" and mode == "generate":
        assert text.startswith("#")
        return
    ran = subprocess.run(program, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, f"{text}\n{ran.stderr}"
    if client != "openai":
        assert ran.stdout.startswith("data:") and "error" not in ran.stdout, ran.stdout
    assert ran.stdout.strip()


def test_a_failed_endpoint_says_why_in_full(visit: Visit) -> None:
    sagemaker: Any = visit.local.client("sagemaker")
    image = {"Image": "any", "Environment": {"HF_MODEL_ID": "/nothing/is/here"}}
    sagemaker.create_model(
        ModelName="bad", ExecutionRoleArn="arn:aws:iam::123456789012:role/any", PrimaryContainer=image
    )
    variant = {
        "VariantName": "all",
        "ModelName": "bad",
        "InstanceType": "ml.m5.large",
        "InitialInstanceCount": 1,
    }
    sagemaker.create_endpoint_config(EndpointConfigName="bad", ProductionVariants=[variant])
    sagemaker.create_endpoint(EndpointName="bad", EndpointConfigName="bad")
    visit.page.wait_for("document.querySelector('.status.Failed')", limit_s=60)
    reason = sagemaker.describe_endpoint(EndpointName="bad")["FailureReason"]
    shown = visit.page.evaluate("document.querySelector('.target:has(.Failed) .problem').textContent")
    assert shown == reason
    assert "/nothing/is/here" in shown
    visit.page.click(".target:has(.Failed) input")
    assert visit.page.evaluate("document.getElementById('send').disabled")
    visit.page.click(".target:has(.InService) input")
    visit.page.evaluate("window.confirm = () => true")
    visit.page.click("[aria-label='Delete bad']")
    visit.page.wait_for("document.querySelectorAll('.target').length === 1")
    sagemaker.describe_endpoint(EndpointName="demo")
    with pytest.raises(sagemaker.exceptions.ClientError, match="Could not find endpoint"):
        sagemaker.describe_endpoint(EndpointName="bad")


@pytest.mark.full  # another container has to start
def test_components_are_chosen_on_their_own(visit: Visit) -> None:
    sagemaker: Any = visit.local.client("sagemaker")
    variant = {"VariantName": "all", "InstanceType": "ml.m5.large", "InitialInstanceCount": 1}
    role = "arn:aws:iam::123456789012:role/any"
    sagemaker.create_endpoint_config(
        EndpointConfigName="shared", ExecutionRoleArn=role, ProductionVariants=[variant]
    )
    sagemaker.create_endpoint(EndpointName="shared", EndpointConfigName="shared")
    sagemaker.get_waiter("endpoint_in_service").wait(EndpointName="shared", WaiterConfig={"Delay": 0.2})
    sagemaker.create_inference_component(
        InferenceComponentName="stories",
        EndpointName="shared",
        VariantName="all",
        Specification={"ModelName": "demo", "ComputeResourceRequirements": {"MinMemoryRequiredInMb": 512}},
        RuntimeConfig={"CopyCount": 1},
    )
    visit.page.wait_for("document.querySelector('.component .status.InService')", limit_s=60)
    visit.page.click("#target-shared")
    assert visit.page.evaluate("document.getElementById('draft').placeholder").startswith("shared is for its")
    assert visit.page.evaluate("document.getElementById('send').disabled")
    visit.page.click(".component input")
    for mode in ("chat", "generate"):
        visit.mode(mode)
        assert visit.answer("Once upon a time", max_tokens=3) != ""
    visit.page.wait_for("document.getElementById('live-note').textContent === ''")
    visit.page.wait_for("document.getElementById('counters').innerText.includes('6')")
    visit.page.click("#target-demo")


@pytest.mark.parametrize("width", [360, 1024, 1400])
def test_it_fits_its_window(visit: Visit, width: int) -> None:
    for dark in (False, True):
        visit.page.look(width=width, dark=dark)
        assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
        paper = visit.page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert paper == ("rgb(16, 21, 28)" if dark else "rgb(255, 255, 255)")
    visit.page.look()


def test_every_control_has_a_name(visit: Visit) -> None:
    nameless = visit.page.evaluate(
        "[...document.querySelectorAll('button, input, textarea, pre[tabindex], [role=log], [role=img]')].filter((node) =>"
        " !(node.getAttribute('aria-label') || node.labels?.[0]?.textContent.trim() || node.textContent.trim()))"
        ".map((node) => node.outerHTML)"
    )
    assert nameless == []


def test_by_keyboard_alone(visit: Visit) -> None:
    visit.mode("chat")
    visit.page.evaluate("document.getElementById('draft').focus()")
    visit.page.write("Hello")
    visit.page.press("Tab", 9)
    assert visit.page.evaluate("document.activeElement.id") == "send"
    visit.page.press("Enter", 13, "\r")
    visit.page.wait_for("document.querySelector('.answer')")
    visit.complete()
    visit.page.evaluate("document.getElementById('logs-tab').focus()")
    visit.page.press("ArrowRight", 39)
    assert visit.page.evaluate("document.activeElement.id") == "code-tab"
    assert not visit.page.evaluate("document.getElementById('code').hidden")
    visit.page.press("ArrowLeft", 37)


def test_under_a_name_that_only_points_here_there_is_no_page(visit: Visit) -> None:
    """DNS rebinding, as a browser sees it."""
    port = visit.url.rstrip("/").rpartition(":")[2]
    visit.page.open(f"http://rebound.test:{port}/")
    assert "AccessDeniedException" in visit.page.evaluate("document.body.innerText")
    visit.page.open(visit.url)
    visit.page.wait_for("document.querySelector('.status.InService')")
