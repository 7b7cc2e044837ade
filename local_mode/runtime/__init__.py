"""Invocations: from the runtime API's wire to containers and back.

emulated = runtime(routing=…, storage=…, resources=…, settings=RuntimeSettings(…))
Starlette(routes=[*emulated.routes, …], lifespan=… emulated.start() … emulated.stop())
"""

from local_mode.runtime.faults import FAULT_KINDS, SYNTAX_HELP, Fault, faults_help, parse_fault
from local_mode.runtime.routes import Runtime, runtime
from local_mode.runtime.settings import RuntimeClocks, RuntimeSettings

__all__ = [
    "FAULT_KINDS",
    "SYNTAX_HELP",
    "Fault",
    "Runtime",
    "RuntimeClocks",
    "RuntimeSettings",
    "faults_help",
    "parse_fault",
    "runtime",
]
