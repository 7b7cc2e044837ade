"""PID 1: `python -m container.entrypoint [serve]`. Port, model files, engine; then watch, drain, report."""

from __future__ import annotations

import ipaddress
import logging
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from container.environment import process_environment
from container.gpus import find_gpus, log_gpus, require_gpus
from container.handler import HANDLER, CustomHandler
from container.model_source import DEMO, MODEL_FILES_FILE, ModelFiles
from container.plan import Plan, make_plan
from container.processes import Programs, api_command, engine_command, fetch_command, serving_environment
from container.run_dir import RunDirectory
from container.start_report import log_settings
from container.supervisor import Child, Supervisor
from serving import logs
from serving.config import ServerConfig, Stage
from serving.errors import ConfigError, ModelError, StartupError
from serving.logs import event

_log = logging.getLogger("container")

_BACKLOG = 2048
_LAST_ANSWERS_S = 1.5  # for the front to hand every client its terminal error after the engine died
_ENGINE_LAST_ANSWERS_S = 2.0  # of the drain time, for streams that have to be ended in-band
_CHILD_GRACE_S = 2.0
_STAGE_LOG_INTERVAL_S = 10.0  # a new stage is logged at once, its progress this often


class Server:
    """One run of the container, from the bound port to the exit code."""

    def __init__(self, plan: Plan, environ: Mapping[str, str], programs: Programs) -> None:
        self._plan = plan
        self._config = _final_config(plan)
        self._environ = environ
        self._programs = programs
        self._run_dir = RunDirectory()
        self._supervisor = Supervisor(self._on_stage)
        self._stage_logged_s = 0.0
        self._publishing = True
        self._api: Child | None = None
        self._engine: Child | None = None
        self._handler: CustomHandler | None = None

    def run(self) -> int:
        """Serve until a stop signal (0) or a failure (1), whose last log line holds reason and fix."""
        try:
            reason = self._serve()
            if reason is None:
                reason = self._drain()
            else:
                self._let_clients_know(reason)
        except StartupError as error:
            reason = error.message
        except OSError as error:
            reason = f"the run directory {self._run_dir.path} cannot be used: {error}; set TMPDIR to a disk with space"
        finally:
            self._publishing = False  # nobody reads it any more, and its disk may be what failed
            for child in (self._api, self._engine):
                self._supervisor.stop(child, grace_s=_CHILD_GRACE_S)
            if self._handler is not None:
                self._handler.stop()
            self._supervisor.close()
            self._run_dir.remove()
        if reason is None:
            event(_log, logging.INFO, "stopped", signal=self._supervisor.stop_signal)
            return 0
        event(_log, logging.ERROR, "failed", reason=reason)
        return 1

    def _serve(self) -> str | None:
        """Start everything and watch it. Returns why it cannot go on, None for a stop signal."""
        self._log_plan()
        self._check_plan()
        self._run_dir.write_config(self._config)
        self._run_dir.publish(Stage(stage="starting"))
        child_environ = serving_environment(self._config, self._environ, self._run_dir.path)
        # Held until the model's files are known: an archive's own settings may need a new front on the same port.
        with _listen(self._config.http.host, self._config.http.port) as listener:
            self._start_api(listener, child_environ)
            files = self._model_files()
            if files is not None and self._look_into(files):
                self._supervisor.stop(self._api, grace_s=0.0)  # it has answered nothing but health checks
                child_environ = serving_environment(self._config, self._environ, self._run_dir.path)
                self._start_api(listener, child_environ)
        if files is not None:
            self._run_dir.write_model_dir(files.model_dir)
        if files is not None and self._start_handler(files):
            command = engine_command(
                self._config,
                self._run_dir.path,
                model_dir=Path(files.model_dir),
                revision=files.revision or self._config.model.revision,
                program=self._programs.engine,
            )
            self._run_dir.publish(Stage(stage="loading"))
            self._engine = self._supervisor.start("engine", command, environ=child_environ)
            self._supervisor.wait_until(self._must_end)
        return None if self._stopping else self._failure()

    def _start_handler(self, files: ModelFiles) -> bool:
        """The custom handler, if there is one: its script is imported before a model is loaded for it. False when the server
        has to end."""
        layout = self._plan.layout
        if layout is None or layout.handler_script is None:
            return True
        self._run_dir.publish(Stage(stage="starting", detail=f"importing {layout.handler_script}"))
        self._handler = handler = CustomHandler(
            self._supervisor,
            self._run_dir,
            self._config,
            script=layout.handler_script.resolve(),
            model_dir=Path(files.model_dir),
            environ=self._environ,
        )
        handler.start()
        self._supervisor.wait_until(lambda: self._must_end() or handler.ready)
        return handler.ready

    def _must_end(self) -> bool:
        if self._handler is not None:
            self._handler.tend()
        return self._stopping or self._failure() is not None

    def _ended(self, child: Child) -> bool:
        """Whether `child` has; what it still answers may need the handler."""
        if self._handler is not None:
            self._handler.tend()
        return not child.running

    @property
    def _stopping(self) -> bool:
        return self._supervisor.stop_signal is not None

    @property
    def _was_ready(self) -> bool:
        return self._engine is not None and any(stage.stage == "ready" for stage in self._engine.stages)

    def _failure(self) -> str | None:
        """Why the server cannot go on, None while it can."""
        engine, api = self._engine, self._api
        if engine is not None and engine.stages and engine.stages[-1].stage == "failed":
            return engine.stages[-1].detail
        if engine is not None and not engine.running:
            return f"the engine ended ({engine.ending}){_hint(engine)}"
        if api is not None and not api.running:
            return f"the HTTP front ended ({api.ending}); its log lines above hold the reason"
        return None if self._handler is None else self._handler.failure

    def _log_plan(self) -> None:
        environment, source = self._plan.environment, self._plan.source
        log_settings(self._config, {**environment.sources, "model.model_id": source.rung})
        log_gpus(find_gpus(self._environ))
        event(_log, logging.INFO, "model", id=source.model_id, kind=source.kind, chosen_by=source.rung)
        if source.passed_over:
            event(
                _log,
                logging.WARNING,
                f"{source.rung} wins over {source.passed_over}, because it comes first in the order MODEL_ID, "
                "model folder, HF_MODEL_ID",
            )
        token = "set" if environment.hf_token else "unset"
        event(_log, logging.INFO, "hub token", token=token)
        layout = self._plan.layout
        for warning in (*environment.warnings, *(layout.warnings() if layout is not None else ())):
            event(_log, logging.WARNING, warning)

    def _check_plan(self) -> None:
        """Raises `StartupError` for what the model's folder or this machine cannot give."""
        environment = self._plan.environment
        gpus = find_gpus(self._environ)
        require_gpus(self._config, environment.sources, gpus)
        if self._plan.layout is not None:
            trusted = environment.config.model.trust_remote_code
            self._plan.layout.require_servable(trusted=trusted)
        if (
            environment.safe_ports is not None
            and (self._config.parallel.num_ranks or (gpus.visible if gpus else 1)) > 1
        ):
            event(
                _log,
                logging.WARNING,
                "ranks talk over loopback ports that the kernel picks outside SAGEMAKER_SAFE_PORT_RANGE; "
                "one rank needs no port",
            )

    def _look_into(self, files: ModelFiles) -> bool:
        """Checks that need the model's files. True when an archive brought settings of its own."""
        before = self._config
        folder = Path(files.model_dir)
        if self._plan.source.kind == "archive":
            archive = self._plan.source
            self._plan = make_plan(self._environ, unpacked=folder)
            if (self._plan.source.kind, self._plan.source.location) != (archive.kind, archive.location):
                raise ModelError(
                    f"{archive.location} names another model ({self._plan.source.model_id}); deploy that one"
                )
            self._config = _final_config(self._plan)
            if self._config != before:
                self._log_plan()
                self._run_dir.write_config(self._config)
            self._check_plan()
        secure_mode = self._plan.environment.secure_mode
        if secure_mode is not None:
            served = None if self._plan.source.model_id == DEMO else folder
            secure_mode.check(self._config, self._plan.environment.sources, served)
        return self._config != before

    def _start_api(self, listener: socket.socket, child_environ: Mapping[str, str]) -> None:
        _raise_file_limit()
        host, port = listener.getsockname()[:2]
        event(_log, logging.INFO, "listening", host=host, port=port)
        command = api_command(
            self._config, self._run_dir.path, listener_fd=listener.fileno(), application=self._programs.api
        )
        self._api = self._supervisor.start(
            "api", command, environ=child_environ, pass_fds=(listener.fileno(),)
        )

    def _model_files(self) -> ModelFiles | None:
        """Where the model lies, fetched if need be. None: a stop signal or a dead front came first."""
        if self._plan.source.kind == "local":
            return ModelFiles(model_dir=self._plan.source.location)
        fetcher = self._supervisor.start("download", fetch_command(self._run_dir.path), environ=self._environ)
        self._supervisor.wait_until(
            lambda: self._stopping or self._failure() is not None or not fetcher.running
        )
        if fetcher.running:
            self._supervisor.stop(fetcher, grace_s=_CHILD_GRACE_S)
            return None
        if fetcher.process.returncode != 0:
            told = [stage.detail for stage in fetcher.stages if stage.stage == "failed"]
            raise StartupError(
                told[-1] if told else f"the download ended ({fetcher.ending}); see its log lines above"
            )
        return msgspec.json.decode((self._run_dir.path / MODEL_FILES_FILE).read_bytes(), type=ModelFiles)

    def _on_stage(self, child: Child, stage: Stage) -> None:
        if child.name == HANDLER:
            return  # its stages are not the server's
        now_s = time.monotonic()
        if stage.stage != self._run_dir.stage.stage or now_s - self._stage_logged_s >= _STAGE_LOG_INTERVAL_S:
            self._stage_logged_s = now_s
            event(_log, logging.INFO, "stage", stage=stage.stage, detail=stage.detail)
        # From the stop signal on, /ping must not turn healthy again.
        if self._publishing and not self._stopping:
            self._run_dir.publish(stage)

    def _let_clients_know(self, reason: str) -> None:
        """The front needs a moment to end every stream with an error; `/ping` says why meanwhile."""
        self._run_dir.publish(Stage(stage="failed", detail=reason))
        event(_log, logging.ERROR, "stopping", reason=reason)
        if self._was_ready:
            api = self._api
            self._supervisor.wait_until(
                lambda: api is None or not api.running, deadline_s=time.monotonic() + _LAST_ANSWERS_S
            )

    def _drain(self) -> str | None:
        """New work is refused from here on; what runs may finish until the drain time is over.

        Returns what went wrong: an engine that died meanwhile.
        """
        started_s, budget_s = self._supervisor.stop_time_s, self._config.http.drain_timeout_s
        self._run_dir.publish(Stage(stage="draining", detail=self._supervisor.stop_signal or ""))
        event(_log, logging.INFO, "draining", signal=self._supervisor.stop_signal, up_to_s=budget_s)
        api, engine = self._api, self._engine
        if api is None or not self._was_ready:
            return None  # nothing runs
        self._supervisor.send(api, signal.SIGTERM)
        in_time = self._supervisor.wait_until(
            lambda: self._ended(api),
            deadline_s=started_s + max(0.0, budget_s - _ENGINE_LAST_ANSWERS_S),
        )
        if engine is not None and not engine.running:
            return self._failure()
        if in_time:
            return None
        event(_log, logging.WARNING, "work is left at the end of the drain time: it is ended with an error")
        if engine is not None:
            self._supervisor.send(engine, signal.SIGTERM)
        if not self._supervisor.wait_until(lambda: not api.running, deadline_s=started_s + budget_s - 0.5):
            for child in (api, engine):
                self._supervisor.send(child, signal.SIGKILL)
        return None


def _final_config(plan: Plan) -> ServerConfig:
    config = plan.environment.config
    model = msgspec.structs.replace(config.model, model_id=plan.source.model_id)
    return msgspec.structs.replace(config, model=model)


def _hint(engine: Child) -> str:
    if engine.process.returncode == -signal.SIGKILL:
        return (
            "; the usual cause is too little memory: lower MAX_BATCH_TOTAL_TOKENS or take a larger instance"
        )
    return "; its log lines above hold the reason"


def _listen(host: str, port: int) -> socket.socket:
    """The listening socket, open before anything slow happens. Raises `StartupError`."""
    family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise StartupError(
            f"cannot listen on {host} port {port}: {error.strerror}; set PORT to a free port"
        ) from error
    return listener


def _raise_file_limit() -> None:
    """As many descriptors as we may have: one per connection."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else min(hard, 65536)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main(argv: Sequence[str], environ: Mapping[str, str], programs: Programs | None = None) -> int:
    """Run the container. `argv` is empty or `serve`; returns the exit code."""
    logs.configure("container")
    try:
        if list(argv) not in ([], ["serve"]):
            raise ConfigError(f"unknown arguments {' '.join(argv)!r}; allowed: serve, or nothing")
        plan = make_plan(environ)
        runtime = plan.environment.config.runtime
        logs.configure("container", level=runtime.log_level, json_output=runtime.json_logs)
        server = Server(plan, environ, programs or Programs())
    except StartupError as error:
        event(_log, logging.ERROR, "failed", reason=error.message)
        return 1
    return server.run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], process_environment()))
