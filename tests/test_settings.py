"""The environment is read once and checked all at once; every fault names its variable and a fix."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.errors import SettingsInvalid
from worker.settings import Listen, WeightedStream, load, markdown, reference

CANARY = "s3cr3t-c4n4ry"
DOCUMENT = Path(__file__).parents[1] / "docs" / "settings.md"


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for row in reference():
        monkeypatch.delenv(row.name, raising=False)


def problems_of(**environment: str) -> list[str]:
    with pytest.raises(SettingsInvalid) as caught:
        load(environment)
    return str(caught.value).splitlines()


def test_without_any_variable_the_defaults_are_sound() -> None:
    settings = load()

    assert settings.nomad_addr == "http://127.0.0.1:4646"
    assert settings.redis_url.get_secret_value() == "redis://127.0.0.1:6379/0"
    assert settings.streams == (WeightedStream("requests", 1),)
    assert settings.http_addr == Listen("", 9464)
    assert settings.allowed_namespaces == ("default",)
    assert settings.allowed_regions == ("",)
    assert settings.lease_seconds == 9
    assert settings.ledger_retention_seconds == 7 * 24 * 3600


def test_values_come_from_the_environment_and_overrides_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_MAX_IN_FLIGHT", "7")
    monkeypatch.setenv("WORKER_DISPATCH_CONCURRENCY", "3")
    monkeypatch.setenv("NOMAD_REGION", "eu")

    settings = load({"WORKER_DISPATCH_CONCURRENCY": "5", "NOMAD_REGION": ""})

    assert (settings.max_in_flight, settings.dispatch_concurrency, settings.nomad_region) == (7, 5, "")


def test_an_empty_variable_counts_as_unset() -> None:
    settings = load({row.name: "" for row in reference()})

    assert settings.max_in_flight == 500
    assert settings.nomad_token is None
    assert settings.nomad_cacert is None


def test_every_problem_is_told_at_once_one_line_each() -> None:
    problems = problems_of(
        WORKER_MAX_IN_FLIGHT="0",
        WORKER_SWEEP_SECONDS="soon",
        WORKER_LOG_FORMAT="xml",
        WORKER_TOKEN_TEMPLATE="{stream}",
        NOMAD_SKIP_VERIFY="perhaps",
        NOMAD_CACERT="/nowhere.pem",
        REDIS_CERT_FILE="",
        WORKER_DRAIN_SECONDS="2",
        WORKER_STREAM="high:1",
    )

    assert [line.partition("=")[0].partition(" ")[0] for line in problems] == [
        "NOMAD_CACERT",
        "NOMAD_SKIP_VERIFY",
        "WORKER_DRAIN_SECONDS",
        "WORKER_LOG_FORMAT",
        "WORKER_MAX_IN_FLIGHT",
        "WORKER_STREAM",
        "WORKER_SWEEP_SECONDS",
        "WORKER_TOKEN_TEMPLATE",
    ]
    assert "WORKER_MAX_IN_FLIGHT='0'" in problems[4]
    assert "Give a whole number from 1 to 100000 (default: 500)." in problems[4]
    assert "Did you mean WORKER_STREAMS?" in problems[5]


@pytest.mark.parametrize(
    ("text", "streams"),
    [
        ("requests", [("requests", 1)]),
        ("high:6,normal:3,low:1", [("high", 6), ("normal", 3), ("low", 1)]),
        (" high:6 , low ", [("high", 6), ("low", 1)]),
    ],
)
def test_streams_with_weights(text: str, streams: list[tuple[str, int]]) -> None:
    settings = load({"WORKER_STREAMS": text, "WORKER_TOKEN_TEMPLATE": "{stream}:{message_id}"})

    assert list(settings.streams) == streams


@pytest.mark.parametrize(
    "text",
    [
        "a,a",
        "a:0",
        "a:x",
        "a:",
        "a:101",
        ",",
        "a b",
        "a:1:2",
        "replies",
        "worker,x",
        "idempotency:2",
        "-a",
        "é",
    ],
)
def test_streams_that_cannot_be_read(text: str) -> None:
    (problem,) = problems_of(WORKER_STREAMS=text, WORKER_TOKEN_TEMPLATE="{stream}:{message_id}")

    assert problem.startswith("WORKER_STREAMS=")


@pytest.mark.parametrize(
    ("text", "listen"),
    [
        (":9464", Listen("", 9464)),
        ("127.0.0.1:0", Listen("127.0.0.1", 0)),
        ("[::1]:9464", Listen("::1", 9464)),
        ("localhost:80", Listen("localhost", 80)),
    ],
)
def test_addresses_to_listen_on(text: str, listen: Listen) -> None:
    settings = load({"WORKER_HTTP_ADDR": text})

    assert settings.http_addr == listen
    assert str(settings.http_addr) == text


@pytest.mark.parametrize("text", ["9464", "host", "host:", ":65536", "::1:9464", "[host]:1", ":-1", ":٣"])
def test_addresses_nobody_can_listen_on(text: str) -> None:
    assert len(problems_of(WORKER_HTTP_ADDR=text)) == 1


@pytest.mark.parametrize(
    "address",
    ["http://127.0.0.1:4646", "https://nomad.example", "unix:///secrets/api.sock", "http://[::1]:4646"],
)
def test_nomad_addresses(address: str) -> None:
    assert load({"NOMAD_ADDR": address}).nomad_addr == address


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1:4646",
        "nomad",
        "ftp://nomad",
        "unix://api.sock",
        "unix:",
        "http://",
        "http://h:x",
        "http://h?a=1",
    ],
)
def test_addresses_that_are_no_agent(address: str) -> None:
    assert len(problems_of(NOMAD_ADDR=address)) == 1


@pytest.mark.parametrize(
    "url",
    [
        "redis://127.0.0.1:6379/0",
        "rediss://user:pass@redis.example",
        "unix:///run/redis.sock?db=2",
        "redis+sentinel://one:26379,two:26379/main/0",
        "redis+cluster://one:6379,two:6379",
    ],
)
def test_redis_urls(url: str) -> None:
    assert load({"REDIS_URL": url}).redis_url.get_secret_value() == url


@pytest.mark.parametrize(
    "url",
    ["127.0.0.1:6379", "http://h", "redis://", "unix://x", "redis+sentinel://h:26379", "redis://h:port"],
)
def test_urls_that_are_no_redis(url: str) -> None:
    (problem,) = problems_of(REDIS_URL=url)

    assert problem.startswith("REDIS_URL ")


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({"WORKER_STREAMS": "a,b"}, "WORKER_TOKEN_TEMPLATE"),
        ({"REDIS_URL": "redis+cluster://h", "WORKER_PREFIX": "dispatch"}, "WORKER_PREFIX"),
        ({"REDIS_URL": "redis+cluster://h", "WORKER_PREFIX": "{a}{b}"}, "WORKER_PREFIX"),
        ({"NOMAD_TOKEN": "t", "NOMAD_TOKEN_FILE": __file__}, "NOMAD_TOKEN"),
        ({"NOMAD_CLIENT_KEY": __file__}, "NOMAD_CLIENT_CERT"),
        ({"REDIS_URL": "rediss://h", "REDIS_CERT_FILE": __file__}, "REDIS_CERT_FILE"),
        ({"REDIS_URL": "redis://h", "REDIS_CA_FILE": __file__}, "REDIS_CA_FILE"),
        ({"REDIS_URL": "redis://u@h", "REDIS_USERNAME": "v"}, "REDIS_USERNAME"),
        ({"REDIS_URL": "redis://u:p/@h", "REDIS_PASSWORD_FILE": __file__}, "REDIS_PASSWORD_FILE"),
        ({"WORKER_NOMAD_TIMEOUT_SECONDS": "7"}, "WORKER_NOMAD_TIMEOUT_SECONDS"),
        ({"WORKER_BLOCK_SECONDS": "3"}, "WORKER_BLOCK_SECONDS"),
        ({"WORKER_DRAIN_SECONDS": "6"}, "WORKER_DRAIN_SECONDS"),
        ({"WORKER_STALL_SECONDS": "9"}, "WORKER_STALL_SECONDS"),
    ],
)
def test_what_settings_must_agree_on(environment: dict[str, str], named: str) -> None:
    (problem,) = problems_of(**environment)

    assert problem.startswith(f"{named} ")


def test_a_check_of_a_faulty_setting_is_left_out() -> None:
    (problem,) = problems_of(
        WORKER_LEASE_SECONDS="nine", WORKER_NOMAD_TIMEOUT_SECONDS="20", WORKER_DRAIN_SECONDS="60"
    )

    assert problem.startswith("WORKER_LEASE_SECONDS=")


@pytest.mark.parametrize(
    "template", ["{stream}", "{message_id!r}", "{message_id:>9}", "{0}", "{}{message_id}", "{"]
)
def test_token_templates_that_cannot_work(template: str) -> None:
    assert len(problems_of(WORKER_TOKEN_TEMPLATE=template)) == 1


def test_variables_of_a_kubernetes_service_named_worker_are_nobodys_typo(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "WORKER_SERVICE_HOST",
        "WORKER_SERVICE_PORT_METRICS",
        "WORKER_PORT",
        "WORKER_PORT_9464_TCP_ADDR",
    ):
        monkeypatch.setenv(name, "x")

    assert load().max_in_flight == 500


def test_the_default_place_comes_first_and_requests_may_choose_the_others() -> None:
    both = load({"NOMAD_NAMESPACE": "b", "WORKER_NAMESPACES": "a,b", "WORKER_REGIONS": "eu,us"})
    listed = load({"WORKER_NAMESPACES": "a,b", "NOMAD_REGION": "eu"})

    assert (both.allowed_namespaces, both.allowed_regions) == (("b", "a"), ("eu", "us"))
    assert (listed.allowed_namespaces, listed.allowed_regions) == (("a", "b"), ("eu",))


@pytest.mark.parametrize(
    ("ui_links", "address", "base"),
    [
        ("true", "https://nomad.example/", "https://nomad.example"),
        ("true", "unix:///api.sock", ""),
        ("false", "https://nomad.example", ""),
        ("https://ui.example/nomad/", "unix:///api.sock", "https://ui.example/nomad"),
    ],
)
def test_where_links_lead(ui_links: str, address: str, base: str) -> None:
    assert load({"WORKER_UI_LINKS": ui_links, "NOMAD_ADDR": address}).ui_base_url == base


def test_a_name_is_made_once_for_each_start() -> None:
    first, second = load(), load()

    assert first.name == first.name != second.name


def test_settings_do_not_change() -> None:
    settings = load()

    with pytest.raises(ValueError, match="frozen"):
        settings.max_in_flight = 1


def test_secrets_are_shown_nowhere() -> None:
    environment = {"NOMAD_TOKEN": CANARY, "REDIS_URL": f"redis://user:{CANARY}/@h:6379/0"}

    settings = load(environment)
    shown = f"{settings!r} {settings} {reference(settings)}"

    assert CANARY not in shown
    assert settings.secret_texts == {CANARY, f"{CANARY}/"}


@pytest.mark.parametrize(
    "environment",
    [
        {"NOMAD_ADDR": f"http://user:{CANARY}@h"},
        {"NOMAD_ADDR": f"user:{CANARY}@h"},
        {"REDIS_URL": CANARY},
        {"REDIS_URL": f"redis://:{CANARY}@h:port"},
        {"NOMAD_TOKEN_FILE": CANARY},
        {"REDIS_PASSWORD_FILE": CANARY},
        {"NOMAD_TOKEN": CANARY, "NOMAD_TOKEN_FILE": __file__},
        {"WORKER_UI_LINKS": f"ftp://user:{CANARY}@h"},
    ],
)
def test_secrets_are_in_no_fault(environment: dict[str, str]) -> None:
    assert CANARY not in "\n".join(problems_of(**environment))


def test_the_reference_shows_values_and_what_was_changed() -> None:
    rows = {row.name: row for row in reference(load({"WORKER_MAX_IN_FLIGHT": "7", "NOMAD_TOKEN": "t"}))}

    assert (rows["WORKER_MAX_IN_FLIGHT"].value, rows["WORKER_MAX_IN_FLIGHT"].changed) == ("7", True)
    assert rows["NOMAD_TOKEN"].value == "***"
    assert not rows["WORKER_LEASE_SECONDS"].changed
    assert all(row.form and row.why for row in rows.values())


def test_the_document_is_the_code() -> None:
    assert DOCUMENT.read_text() == markdown(), "run: make docs"


@given(st.dictionaries(st.sampled_from([row.name for row in reference()]), st.text(max_size=20), max_size=6))
def test_any_text_is_read_or_refused_with_one_line_for_each_problem(environment: dict[str, str]) -> None:
    try:
        settings = load(environment)
    except SettingsInvalid as refusal:
        problems = str(refusal)
    else:
        problems = ""
        assert settings.max_in_flight >= 1

    assert all(line.startswith(("NOMAD_", "REDIS_", "WORKER_")) for line in problems.splitlines())
