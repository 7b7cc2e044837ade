"""A page to try endpoints on: what serves, a chat with its timings, occupancy as it changes, logs.

The page is a client of the emulator like any other: it creates endpoints with the control plane's operations and talks
to them over the runtime's routes. What is here besides is its files, and three routes to look without changing anything.
"""

from local_mode.playground.guard import BrowserGuard
from local_mode.playground.routes import Playground

__all__ = ["BrowserGuard", "Playground"]
