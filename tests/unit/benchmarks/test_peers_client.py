"""The streaming client against servers of a few lines: what it sends, when, and what it makes of every kind of answer."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager

import pytest

from benchmarks.peers.contracts import EngineFailed, Request, Workload
from benchmarks.peers.dialects import LlamaServer, NativeStream, OpenAICompletions
from benchmarks.peers.stream_client import run_streams

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
PLAIN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n"


class Server:
    """Answers each connection in a thread of its own with the pieces that `answer(body)` yields."""

    def __init__(self, answer):
        self._answer = answer
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self.port = self._listener.getsockname()[1]
        self.bodies, self.heads = [], []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self):
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self._threads[-1].start()

    def _serve(self, connection):
        with connection, connection.makefile("rb") as reader:
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (line := reader.readline()):
                    return
                head += line
            [length] = [int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")]
            body = reader.read(length)
            with self._lock:
                self.heads.append(head)
                self.bodies.append(json.loads(body))
            for piece in self._answer(json.loads(body)):
                connection.sendall(piece)

    def close(self):
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join()


@contextmanager
def serving(answer):
    server = Server(answer)
    try:
        yield server
    finally:
        server.close()


def chunk(payload):
    return f"{len(payload):x}\r\n".encode() + payload + b"\r\n"


def event(fields):
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def openai_events(num_tokens):
    yield from (event({"choices": [{"text": f" {index}"}]}) for index in range(num_tokens))
    yield event({"choices": [{"text": "", "finish_reason": "length"}]})
    yield event({"choices": [], "usage": {"completion_tokens": num_tokens}})
    yield b"data: [DONE]\n\n"


def chunked(events):
    yield HEAD
    yield from map(chunk, events)
    yield b"0\r\n\r\n"


def openai(body):
    return chunked(openai_events(body["max_tokens"]))


def workload(count, num_tokens=3, concurrency=None):
    return Workload(tuple(Request((index + 1, 2), num_tokens) for index in range(count)), concurrency)


def test_what_is_asked_for_arrives():
    with serving(openai) as server:
        asked = workload(3, num_tokens=5)
        measured = run_streams(server.port, OpenAICompletions("m"), asked)
    assert measured.complaints(asked) == []
    assert sorted(body["prompt"] for body in server.bodies) == [[1, 2], [2, 2], [3, 2]]
    assert all(b"connection: close\r\n" in head for head in server.heads)
    for body in server.bodies:
        expected = {"model": "m", "max_tokens": 5, "temperature": 0, "ignore_eos": True, "stream": True}
        assert body.items() >= expected.items()
    for got in measured.requests:
        assert len(got.token_s) == got.num_tokens == 5
        assert got.start_s <= got.first_token_s == got.token_s[0] <= got.end_s <= measured.wall_s
        assert got.token_s == sorted(got.token_s)
    assert measured.client_cpu_s > 0


def test_each_event_has_the_time_of_its_last_byte():
    """An event that comes in two halves counts when the second is there."""
    gate = threading.Event()

    def halves(body):
        first, second = event({"choices": [{"text": "a"}]}), event({"choices": [{"text": "b"}]})
        yield HEAD + chunk(first) + chunk(second)[:20]
        gate.wait(5)
        yield chunk(second)[20:] + b"0\r\n\r\n"

    with serving(halves) as server:
        timer = threading.Timer(0.1, gate.set)
        timer.start()
        [got] = run_streams(server.port, OpenAICompletions("m"), workload(1, 2)).requests
        timer.join()
    assert got.num_tokens == 2
    assert got.token_s[1] - got.token_s[0] > 0.05


@pytest.mark.parametrize("split", [1, 7, 1000])
def test_however_the_bytes_are_cut(split):
    def cut(body):
        whole = b"".join(openai(body))
        return (whole[start : start + split] for start in range(0, len(whole), split))

    with serving(cut) as server:
        asked = workload(1, 4)
        measured = run_streams(server.port, OpenAICompletions("m"), asked)
    assert measured.complaints(asked) == []
    assert len(measured.requests[0].token_s) == 4


def test_a_stream_that_ends_with_the_connection():
    with serving(lambda body: [PLAIN_HEAD, *openai_events(body["max_tokens"])]) as server:
        asked = workload(1, 4)
        assert run_streams(server.port, OpenAICompletions("m"), asked).complaints(asked) == []


def test_no_more_are_open_than_the_concurrency():
    lock, open_now, most_open = threading.Lock(), [], []

    def count(body):
        with lock:
            open_now.append(body["prompt"])
            most_open.append(len(open_now))
        *pieces, last = openai(body)
        yield from pieces
        with lock:  # before the piece that tells the client that there is room
            open_now.remove(body["prompt"])
        yield last

    with serving(count) as server:
        asked = workload(9, concurrency=2)
        assert run_streams(server.port, OpenAICompletions("m"), asked).complaints(asked) == []
    assert len(server.bodies) == 9
    assert max(most_open) <= 2


def test_requests_are_sent_when_they_arrive():
    requests = tuple(Request((1,), 1, arrival_s) for arrival_s in (0.0, 0.06, 0.12))
    begin_s = time.perf_counter()
    with serving(openai) as server:
        measured = run_streams(server.port, OpenAICompletions("m"), Workload(requests))
    assert [
        got.start_s >= asked.arrival_s for got, asked in zip(measured.requests, requests, strict=True)
    ] == [True] * 3
    assert time.perf_counter() - begin_s >= 0.12


def test_a_refusal_of_stated_length_is_an_error_though_the_connection_stays_open():
    release = threading.Event()

    def refuse(body):
        yield b"HTTP/1.1 422 Unprocessable\r\ncontent-length: 11\r\n\r\nno such "
        yield b"key"
        release.wait(5)

    with serving(refuse) as server:
        [got] = run_streams(server.port, OpenAICompletions("m"), workload(1)).requests
        release.set()
    assert got.error == "HTTP/1.1 422 Unprocessable: no such key"
    assert got.first_token_s is None


@pytest.mark.parametrize(
    ("pieces", "message"),
    [
        ([], "closed without an answer"),
        (list(chunked([event({"error": {"message": "overloaded"}})])), "overloaded"),
        (list(chunked([b"data: {half\n\n"])), "not understood"),
        (list(chunked([event({"something": "else"})])), "not understood"),
    ],
)
def test_what_is_no_answer_is_an_error_of_its_request(pieces, message):
    with serving(lambda body: pieces) as server:
        asked = workload(1)
        measured = run_streams(server.port, OpenAICompletions("m"), asked)
    assert message in measured.complaints(asked)[0]


def test_a_stream_that_breaks_off_has_fewer_tokens():
    with serving(lambda body: [HEAD, *map(chunk, list(openai_events(3))[:2])]) as server:
        asked = workload(1, 3)
        assert run_streams(server.port, OpenAICompletions("m"), asked).complaints(asked) == [
            "request 0: 2 tokens instead of 3"
        ]


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    asked = workload(2)
    measured = run_streams(port, OpenAICompletions("m"), asked)
    assert all("cannot connect" in got.error for got in measured.requests)


def test_llama_servers_own_words():
    def answer(body):
        assert body["n_predict"] == 2 and body["top_k"] == 1 and body["cache_prompt"] is False
        return chunked(
            [
                event({"content": "a", "tokens": [5], "stop": False}),
                event({"content": "", "tokens": [6], "stop": False}),
                event({"content": "", "tokens": [], "stop": True, "tokens_predicted": 2}),
            ]
        )

    with serving(answer) as server:
        asked = workload(1, 2)
        measured = run_streams(server.port, LlamaServer(prefix_cache=False), asked)
    assert measured.complaints(asked) == []
    assert measured.requests[0].token_ids == [5, 6]


def test_the_native_route_takes_text_that_gives_the_same_tokens():
    def answer(body):
        assert body == {"inputs": "1 2", "parameters": {"max_new_tokens": 2}}
        return chunked(
            [
                event({"token": {"id": 8}, "details": None}),
                event({"token": {"id": 9}, "details": {"generated_tokens": 2}}),
            ]
        )

    def encode(text):
        return [int(word) for word in text.split()]

    dialect = NativeStream(lambda ids: " ".join(map(str, ids)), encode)
    with serving(answer) as server:
        asked = workload(1, 2)
        measured = run_streams(server.port, dialect, asked)
    assert measured.complaints(asked) == []
    assert measured.requests[0].token_ids == [8, 9]
    lossy = NativeStream(lambda ids: "1", encode)
    with pytest.raises(EngineFailed, match="tokenized to other ids"):
        lossy.body(Request((1, 2), 2))
