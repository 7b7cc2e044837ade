"""The one place that holds the version: the distribution, `--version`, `/info` and the image label read it."""

VERSION = "0.1.0"
