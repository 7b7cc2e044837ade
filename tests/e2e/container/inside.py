"""`inside.py PORT METHOD PATH [BODY]`: one HTTP call, printed as JSON. Run by path, in a container's network namespace;
uses the standard library alone."""

from __future__ import annotations

import http.client
import json
import sys


def main() -> None:
    port, method, path, *body = sys.argv[1:]
    connection = http.client.HTTPConnection("127.0.0.1", int(port), timeout=60)
    headers = {"content-type": "application/json"} if body else {}
    connection.request(method, path, body[0] if body else None, headers)
    response = connection.getresponse()
    print(json.dumps({"status": response.status, "body": response.read().decode()}))


if __name__ == "__main__":
    main()
