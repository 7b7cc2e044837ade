"""Containers of the emulator: run, fed with model data, watched, found for invocations."""
