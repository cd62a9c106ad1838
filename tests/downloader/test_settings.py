from __future__ import annotations

import socket
from pathlib import Path

import pytest

from nlocalmodels_downloader.errors import ConfigError
from nlocalmodels_downloader.settings import Settings, read_settings


def test_settings_have_defaults_when_nothing_is_set() -> None:
    assert read_settings({}) == Settings(owner=socket.gethostname())


def test_settings_take_empty_variables_for_unset_ones() -> None:
    names = (
        *("HF_ENDPOINT", "HF_TOKEN", "POD_UID", "POD_NAME", "TERMINATION_MESSAGE_PATH", "MODEL_PATH_LIMIT_BYTES"),
        *("DOWNLOAD_CONNECTIONS", "DOWNLOAD_DURABLE", "DOWNLOAD_LEASE_SECONDS", "DOWNLOAD_WAIT_SECONDS"),
        *("DOWNLOAD_OFFLINE", "DOWNLOAD_MAX_BYTES_PER_SECOND"),
    )
    assert read_settings(dict.fromkeys(names, "")) == read_settings({})


def test_settings_read_every_variable() -> None:
    settings = read_settings(
        {
            "HF_ENDPOINT": "https://hub.example/",
            "HF_TOKEN": "hf_x",
            "POD_UID": "uid",
            "DOWNLOAD_CONNECTIONS": "8",
            "DOWNLOAD_ATTEMPTS": "3",
            "DOWNLOAD_CONNECT_SECONDS": "1.5",
            "DOWNLOAD_STALL_SECONDS": "2.5",
            "DOWNLOAD_PROGRESS_SECONDS": "3.5",
            "DOWNLOAD_LEASE_SECONDS": "4.5",
            "DOWNLOAD_WAIT_SECONDS": "5.5",
            "DOWNLOAD_DURABLE": "true",
            "DOWNLOAD_OFFLINE": "true",
            "DOWNLOAD_MAX_BYTES_PER_SECOND": "1048576",
            "MODEL_PATH_LIMIT_BYTES": "10737418240",
            "TERMINATION_MESSAGE_PATH": "/x",
        }
    )
    assert settings == Settings(
        hub_endpoint="https://hub.example",
        hub_token="hf_x",
        owner="uid",
        num_connections=8,
        num_attempts=3,
        connect_timeout_seconds=1.5,
        stall_seconds=2.5,
        progress_seconds=3.5,
        lease_seconds=4.5,
        lease_budget_seconds=5.5,
        is_durable=True,
        is_offline=True,
        max_bytes_per_second=1024**2,
        volume_limit_bytes=10 * 1024**3,
        termination_message_path=Path("/x"),
    )


def test_settings_take_the_line_end_off_a_token() -> None:
    assert read_settings({"HF_TOKEN": "hf_x\n"}).hub_token == "hf_x"


@pytest.mark.parametrize("token", ["hf_\u2026x", "hf_a\nhf_b", "hf_a b"])
def test_settings_refuse_a_token_that_no_header_can_hold_and_do_not_show_it(token: str) -> None:
    with pytest.raises(ConfigError, match="HF_TOKEN") as caught:
        read_settings({"HF_TOKEN": token})
    assert "hf_" not in str(caught.value)


def test_settings_do_not_show_the_token() -> None:
    assert "hf_x" not in repr(read_settings({"HF_TOKEN": "hf_x"}))


@pytest.mark.parametrize("endpoint", ["hub.example", "ftp://hub.example", "https://[broken", "hf://a/b/c@d"])
def test_settings_refuse_an_endpoint_that_is_no_address(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="HF_ENDPOINT"):
        read_settings({"HF_ENDPOINT": endpoint})


@pytest.mark.parametrize("text", ["0", "17", "-1", "nan", "inf", "many"])
def test_settings_refuse_a_number_out_of_range(text: str) -> None:
    with pytest.raises(ConfigError, match="DOWNLOAD_CONNECTIONS"):
        read_settings({"DOWNLOAD_CONNECTIONS": text})


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("DOWNLOAD_LEASE_SECONDS", "0"),
        ("DOWNLOAD_WAIT_SECONDS", "-1"),
        ("MODEL_PATH_LIMIT_BYTES", "0"),
        ("MODEL_PATH_LIMIT_BYTES", "10Gi"),
        ("DOWNLOAD_DURABLE", "yes"),
        ("DOWNLOAD_DURABLE", "True"),
        ("DOWNLOAD_OFFLINE", "1"),
        ("DOWNLOAD_MAX_BYTES_PER_SECOND", "0"),
        ("DOWNLOAD_MAX_BYTES_PER_SECOND", "1023"),
        ("DOWNLOAD_MAX_BYTES_PER_SECOND", "10Mi"),
    ],
)
def test_settings_name_the_variable_that_is_not_of_its_form(name: str, text: str) -> None:
    with pytest.raises(ConfigError, match=name) as caught:
        read_settings({name: text})
    assert text in str(caught.value)


def test_settings_read_false_as_false() -> None:
    assert read_settings({"DOWNLOAD_DURABLE": "false"}).is_durable is False


def test_settings_take_no_seconds_of_waiting_for_an_answer() -> None:
    assert read_settings({"DOWNLOAD_WAIT_SECONDS": "0"}).lease_budget_seconds == 0


def test_settings_take_the_endpoint_of_a_store_by_the_names_of_aws() -> None:
    assert read_settings({}).s3_endpoint is None
    both = {"AWS_ENDPOINT_URL": "https://all.example", "AWS_ENDPOINT_URL_S3": "https://s3.example/", "AWS_REGION": "eu-west-1"}
    assert read_settings(both).s3_endpoint == "https://s3.example"
    assert read_settings(both).s3_region == "eu-west-1"
    assert read_settings({"AWS_ENDPOINT_URL": "https://all.example"}).s3_endpoint == "https://all.example"
    with pytest.raises(ConfigError, match="AWS_ENDPOINT_URL_S3=file:///x"):
        read_settings({"AWS_ENDPOINT_URL_S3": "file:///x"})


def test_settings_of_registries() -> None:
    assert read_settings({}).docker_config is None
    read = read_settings({"DOCKER_CONFIG": "/run/registries", "OCI_PLAIN_HTTP": "registry:5000, other"})
    assert read.docker_config == Path("/run/registries/config.json")
    assert read.plain_http_registries == {"registry:5000", "other"}
