"""Secure mode: its controls, the folders they apply to, and variables that end a start for other reasons."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from container.environment import read_environment
from container.model_layout import read_properties
from container.secure_mode import CONTROLS
from serving.errors import ConfigError, ModelError, StartupError

ALL = ",".join(CONTROLS)


def check(base: Path, served: Path, controls: str = ALL, **environ: str) -> None:
    on = {"SAGEMAKER_SECURE_MODE": "true", "SAGEMAKER_SECURITY_CONTROLS": controls}
    environment = read_environment({"SAGEMAKER_BASE_DIR": str(base), **on, **environ})
    assert environment.secure_mode is not None
    environment.secure_mode.check(environment.config, environment.sources, served)


def folder_with(folder: Path, name: str, content: str = "{}") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return folder


def test_it_is_off_by_default() -> None:
    assert read_environment({}).secure_mode is None
    assert read_environment({"SAGEMAKER_SECURE_MODE": "false"}).secure_mode is None


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "needs SAGEMAKER_SECURITY_CONTROLS"),
        ({"SAGEMAKER_SECURITY_CONTROLS": " , "}, "needs SAGEMAKER_SECURITY_CONTROLS"),
        (
            {"SAGEMAKER_SECURITY_CONTROLS": "DISALLOW_PICKLES"},
            "'DISALLOW_PICKLES'; allowed: DISALLOW_PICKLE_FILES",
        ),
        (
            {"SAGEMAKER_SECURITY_CONTROLS": ALL, "SAGEMAKER_UNTRUSTED_CHANNELS": "model"},
            "names 'model'; allowed: absolute paths",
        ),
        ({"SAGEMAKER_SECURE_MODE": "perhaps"}, "allowed: true or false"),
    ],
)
def test_settings_that_do_not_say_what_is_forbidden(environ: dict[str, str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_environment({"SAGEMAKER_SECURE_MODE": "true", **environ})
    assert said in caught.value.message


@pytest.mark.parametrize(
    ("control", "name", "content"),
    [
        ("DISALLOW_PICKLE_FILES", "deep/down/weights.PT", ""),
        ("DISALLOW_REQUIREMENTS_TXT", "code/requirements.txt", "x"),
        ("DISALLOW_CUSTOM_INFERENCE_SCRIPTS", "code/inference.py", ""),
        ("DISALLOW_CHAT_TEMPLATE", "chat_template.jinja", "x"),
        ("DISALLOW_CHAT_TEMPLATE", "tokenizer_config.json", json.dumps({"chat_template": "x"})),
    ],
)
def test_each_control_forbids_what_it_names_and_nothing_else(
    tmp_path: Path, control: str, name: str, content: str
) -> None:
    served = folder_with(tmp_path / "model", name, content)
    with pytest.raises(ModelError) as caught:
        check(tmp_path, served, control)
    assert control in caught.value.message and str(served / name) in caught.value.message
    others = [other for other in CONTROLS if other != control]
    check(tmp_path, served, ",".join(others))


def test_remote_code_is_forbidden_whoever_asked_for_it(tmp_path: Path) -> None:
    with pytest.raises(StartupError, match="DISALLOW_TRUST_REMOTE_CODE"):
        check(tmp_path, tmp_path, "DISALLOW_TRUST_REMOTE_CODE", OPTION_TRUST_REMOTE_CODE="true")
    check(tmp_path, tmp_path, "DISALLOW_TRUST_REMOTE_CODE")


def test_links_to_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    folder_with(tmp_path / "elsewhere", "deep/weights.pkl")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(tmp_path / "elsewhere")
    channels = tmp_path / "additional-model-data-sources"
    channels.mkdir()
    (channels / "draft").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    served = folder_with(tmp_path / "model", "config.json")
    with pytest.raises(ModelError, match=r"DISALLOW_PICKLE_FILES .*draft/deep/weights\.pkl is there"):
        check(tmp_path, served, "DISALLOW_PICKLE_FILES")
    check(tmp_path, served, "DISALLOW_REQUIREMENTS_TXT")


def test_a_template_may_come_from_the_environment_only(tmp_path: Path) -> None:
    control = "DISALLOW_CHAT_TEMPLATE"
    served = folder_with(tmp_path / "model", "my.txt", "{{ messages }}")
    trusted = folder_with(tmp_path / "trusted", "my.txt", "{{ messages }}")
    check(tmp_path, served, control, CHAT_TEMPLATE="{{ messages }}")
    check(tmp_path, served, control, CHAT_TEMPLATE=str(trusted / "my.txt"))
    with pytest.raises(ConfigError, match="but CHAT_TEMPLATE names one"):
        check(tmp_path, served, control, CHAT_TEMPLATE=str(served / ".." / "model" / "my.txt"))
    with pytest.raises(ConfigError, match=r"but option\.chat_template in .* names one"):
        (served / "serving.properties").write_text("option.chat_template={{ messages }}\n")
        given = read_properties(served / "serving.properties")
        on = {"SAGEMAKER_SECURE_MODE": "true", "SAGEMAKER_SECURITY_CONTROLS": control}
        environment = read_environment({"SAGEMAKER_BASE_DIR": str(tmp_path), **on}, given)
        assert environment.secure_mode is not None
        environment.secure_mode.check(environment.config, environment.sources, served)


def test_a_harmless_model_passes_every_control(tmp_path: Path) -> None:
    served = folder_with(tmp_path / "model", "config.json")
    folder_with(served, "tokenizer_config.json", '{"eos_token": "x"}')
    check(tmp_path, served)


def test_the_channels_say_where(tmp_path: Path) -> None:
    trusted = folder_with(tmp_path / "trusted", "a.pkl")
    served = folder_with(tmp_path / "served", "config.json")
    folder_with(tmp_path / "other", "config.json")
    check(tmp_path, served, SAGEMAKER_UNTRUSTED_CHANNELS=str(tmp_path / "other"))
    with pytest.raises(ConfigError, match="othr, which is no folder"):
        check(tmp_path, served, SAGEMAKER_UNTRUSTED_CHANNELS=str(tmp_path / "othr"))
    with pytest.raises(ModelError, match="DISALLOW_PICKLE_FILES"):
        check(tmp_path, served, SAGEMAKER_UNTRUSTED_CHANNELS=f"{tmp_path / 'other'}, {trusted}")


def test_by_default_the_mounted_folders_and_the_served_one_are_untrusted(tmp_path: Path) -> None:
    served = folder_with(tmp_path / "cache", "config.json")
    folder_with(tmp_path / "additional-model-data-sources", "draft/model.bin")
    with pytest.raises(ModelError, match=r"draft/model\.bin"):
        check(tmp_path, served)
    folder_with(served, "b.ckpt")
    with pytest.raises(ModelError, match=r"b\.ckpt"):
        check(tmp_path / "elsewhere", served)


def test_a_tokenizer_configuration_that_cannot_be_read_does_not_pass(tmp_path: Path) -> None:
    served = folder_with(tmp_path, "tokenizer_config.json", "{")
    with pytest.raises(ModelError, match="cannot be read"):
        check(tmp_path, served, "DISALLOW_CHAT_TEMPLATE")


@pytest.mark.parametrize("text", ["true", "1", "yes", "maybe"])
def test_multi_model_endpoints_are_refused_with_the_alternative(text: str) -> None:
    with pytest.raises(ConfigError, match="inference component"):
        read_environment({"SAGEMAKER_MULTI_MODEL": text})


def test_multi_model_may_be_off() -> None:
    environment = read_environment({"SAGEMAKER_MULTI_MODEL": "false"})
    assert environment.warnings == ()


def test_the_safe_port_range() -> None:
    assert read_environment({}).safe_ports is None
    ports = read_environment({"SAGEMAKER_SAFE_PORT_RANGE": "23000-23999"}).safe_ports
    assert ports == range(23000, 24000)


@pytest.mark.parametrize("text", ["23000", "9-1", "0-5", "1-70000", "a-b", "1-2-3"])
def test_a_port_range_that_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="SAGEMAKER_SAFE_PORT_RANGE"):
        read_environment({"SAGEMAKER_SAFE_PORT_RANGE": text})
