"""The one place that holds the version: distribution, `--version`, `/info` and image label read it."""

VERSION = "0.1.0"
