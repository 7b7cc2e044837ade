"""gunicorn's settings that never vary. `container.processes` passes the rest as arguments."""

from __future__ import annotations

from typing import Any

from setproctitle import setproctitle

from container.api_worker import ApiLogger, die_with_parent

worker_class = "container.api_worker.ApiWorker"
logger_class = ApiLogger
proc_name = "api"
preload_app = False  # tokenizers, sockets and threads are made after the fork
control_socket_disable = True  # it would lie in $HOME

timeout = 60  # seconds without a heartbeat of a worker's loop; a busy stream beats all the time
keepalive = 5  # seconds for an idle connection, and for the header of a request to arrive

accesslog = None
forwarded_allow_ips = ""  # no client may tell us who it is
proxy_allow_ips = ""
limit_request_line = 8190
limit_request_fields = 100
limit_request_field_size = 16384


def pre_request(_worker: Any, _request: Any) -> None:
    """gunicorn's own logs every path at debug level; `serving.api.access` logs requests, by their routes."""


def pre_fork(_server: Any, _worker: Any) -> None:
    setproctitle("api")  # the master's


def post_fork(_server: Any, worker: Any) -> None:
    die_with_parent(worker.ppid)
    setproctitle("api")
