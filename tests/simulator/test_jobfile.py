"""Job files become the job that Nomad would register, or are refused with its words."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.dev.demo_jobs import demo_jobs
from worker.dev.simulator.jobfile import InvalidJob, JobFileError, canonical_job, load_job, parse_hcl

pytest.importorskip("hcl2")

FILES = Path(__file__).parent / "jobfiles"
EXAMPLES = Path(__file__).parents[2] / "deploy" / "nomad" / "jobs"
NAMES = ("everything", "minimal", "shorthand", "sysbatch", "variables")
REFUSED = json.loads((FILES / "refused.json").read_text())
GOOD: dict[str, Any] = {
    "ID": "v",
    "Type": "batch",
    "Datacenters": ["*"],
    "TaskGroups": [
        {
            "Name": "g",
            "RestartPolicy": {
                "Attempts": 0,
                "Mode": "fail",
                "Delay": 200_000_000,
                "Interval": 30_000_000_000,
            },
            "ReschedulePolicy": {"Attempts": 0, "Unlimited": False},
            "Tasks": [
                {
                    "Name": "t",
                    "Driver": "raw_exec",
                    "Config": {"command": "/bin/true"},
                    "Resources": {"CPU": 20, "MemoryMB": 10},
                }
            ],
        }
    ],
}


def changed(changes: dict[str, Any]) -> Any:
    """The good job with some fields of the job, its group or its task replaced."""
    job = copy.deepcopy(GOOD)
    if not isinstance(changes.get("job", {}), dict):
        return changes["job"]
    group = job["TaskGroups"][0]
    group["Tasks"][0] |= changes.get("task", {})
    group |= changes.get("group", {})
    return job | changes.get("job", {})


def task_hcl(lines: str, top: str = "") -> str:
    config = 'config {\ncommand = "/bin/true"\n}'
    return (
        f'job "j" {{\ntype = "batch"\ngroup "g" {{\ntask "t" {{\ndriver = "raw_exec"\n{config}\n'
        f"{lines}\n}}\n}}\n}}\n{top}\n"
    )


def task_of(lines: str, top: str = "") -> dict[str, Any]:
    task: dict[str, Any] = parse_hcl(task_hcl(lines, top))["TaskGroups"][0]["Tasks"][0]
    return task


def env_of(expression: str, top: str = "") -> Any:
    return task_of(f"env {{\nX = {expression}\n}}", top)["Env"]["X"]


@pytest.mark.parametrize("name", NAMES)
def test_a_job_file_becomes_the_job_nomad_registers(name: str) -> None:
    expected = json.loads((FILES / f"{name}.json").read_text())

    assert load_job(FILES / f"{name}.nomad.hcl") == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_registered_job_is_canonical_already(name: str) -> None:
    assert load_job(FILES / f"{name}.json") == json.loads((FILES / f"{name}.json").read_text())


def test_json_may_be_wrapped_and_partial(tmp_path: Path) -> None:
    file = tmp_path / "job.json"
    file.write_text(json.dumps({"Job": GOOD}))

    job = load_job(file)

    assert (job["Name"], job["Priority"], job["Namespace"]) == ("v", 50, "default")
    assert job["TaskGroups"][0]["Tasks"][0]["KillTimeout"] == 5_000_000_000


def test_the_given_job_is_not_changed() -> None:
    job = copy.deepcopy(GOOD)

    canonical_job(job)

    assert job == GOOD


@pytest.mark.parametrize("refusal", REFUSED, ids=lambda refusal: refusal["case"])
def test_a_job_nomad_refuses_is_refused_with_its_words(refusal: dict[str, Any]) -> None:
    with pytest.raises(InvalidJob) as error:
        canonical_job(changed(refusal["changes"]))

    assert (error.value.status, error.value.message) == (refusal["status"], refusal["text"])


@pytest.mark.parametrize(
    ("job_type", "restarts", "reschedules"),
    [("batch", 3, 1), ("sysbatch", 3, None), ("service", 2, 0), ("system", 2, None)],
)
def test_the_default_policies_depend_on_the_type(
    job_type: str, restarts: int, reschedules: int | None
) -> None:
    group = canonical_job(
        changed({"job": {"Type": job_type}, "group": {"RestartPolicy": None, "ReschedulePolicy": None}})
    )["TaskGroups"][0]

    assert group["RestartPolicy"]["Attempts"] == restarts
    assert (group["ReschedulePolicy"] or {}).get("Attempts") == reschedules


@given(
    priority=st.one_of(st.none(), st.integers(0, 100)),
    count=st.one_of(st.none(), st.integers(0, 5)),
    meta=st.one_of(st.none(), st.dictionaries(st.text(), st.text())),
    payload=st.sampled_from([None, "", "optional", "required", "forbidden"]),
    restart=st.fixed_dictionaries({}, optional={"Attempts": st.integers(0, 3), "Mode": st.just("fail")}),
)
def test_canonical_twice_is_canonical_once(
    priority: int | None,
    count: int | None,
    meta: dict[str, str] | None,
    payload: str | None,
    restart: dict[str, Any],
) -> None:
    job = changed(
        {
            "job": {"Priority": priority, "Meta": meta, "ParameterizedJob": {"Payload": payload}},
            "group": {"Count": count, "RestartPolicy": restart},
        }
    )

    once = canonical_job(job)

    assert canonical_job(once) == once
    assert once["ParameterizedJob"]["Payload"] == (payload or "optional")


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("1 + 2 * 3", "7"),
        ("(1 + 2) * 3", "9"),
        ("7 / 2", "3.5"),
        ("-1.50", "-1.5"),
        ("1e3", "1000"),
        ("true && !false", "true"),
        ("1 < 2 ? 3 : 4", "3"),
        ('"a ${"b ${"c"}"} d"', "a b c d"),
        (r'"tab\t quote\" back\\ \u00e9 \U0001F600"', 'tab\t quote" back\\ é 😀'),
        ('"$${x} %%{y} $HOME 100%"', "${x} %{y} $HOME 100%"),
        ('"${NOMAD_META_who}"', "${NOMAD_META_who}"),
        ('"a ${ attr.x } b"', "a ${ attr.x } b"),
        ("attr.kernel.name", "${attr.kernel.name}"),
        ('env["PATH"]', '${env["PATH"]}'),
        ("upper(node.class)", "${NODE.CLASS}"),
        ('{ a = ["x", "y"] }.a[1]', "y"),
        ('join("-", concat(["a"], ["b"]))', "a-b"),
        ('format("%s=%02d%%", "x", 5)', "x=05%"),
        ('jsonencode({ a = [1, "b"] })', '{"a":[1,"b"]}'),
        ('coalesce("", null, "z")', "z"),
        ('lookup({ a = "1" }, "b", "none")', "none"),
        ('<<E\na\\tb "q" $${x} ${1 + 1}\nE', 'a\\tb "q" ${x} 2\n'),
        ('<<-E\n    a\n      ${upper("b")}\n\n    E', "a\n  B\n\n"),
        ("<<-E\n    a\n\tb\n\n      c\n  E", "   a\nb\n\n     c\n"),
    ],
)
def test_an_expression_has_the_value_nomad_gives_it(expression: str, expected: str) -> None:
    assert env_of(expression) == expected


@pytest.mark.parametrize(
    ("expression", "top", "expected"),
    [
        ("var.a", 'variable "a" {\ndefault = "x"\n}', "x"),
        ("var.a", 'variables {\na = "x"\n}', "x"),
        ("var.a.b[1]", 'variable "a" {\ndefault = { b = ["x", "y"] }\n}', "y"),
        ("local.a", "locals {\na = local.b\nb = 1\n}", "1"),
        ("local.a", 'variable "b" {\ndefault = "x"\n}\nlocals {\na = "<${var.b}>"\n}', "<x>"),
    ],
)
def test_variables_and_locals_have_their_values(expression: str, top: str, expected: str) -> None:
    assert env_of(expression, top) == expected


@given(st.text(st.characters(blacklist_categories=["Cs", "Cc"])))
def test_any_text_comes_through_a_quoted_string(text: str) -> None:
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("${", "$").replace("%{", "%")
    expected = text.replace("${", "$").replace("%{", "%")

    assert env_of(f'"{quoted}"') == expected


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("vault {\n}", 'line 9: the block "vault" is not supported in a "task" block'),
        ("foo = 1", 'line 9: the argument "foo" is not supported in a "task" block'),
        ("meta {\n}\nmeta {\n}", 'line 11: only one "meta" block is allowed in a "task" block'),
        ('user = "a"\nuser = "b"', 'line 10: the argument "user" is set twice'),
        ('kill_timeout = "5x"', 'line 9: kill_timeout: time: unknown unit "x" in duration "5x"'),
        ("env {\nA = null\n}", "line 10: A: a null value is not allowed here"),
        ("env {\nA = [1]\n}", "line 10: A: a string is required, not a list"),
        ("resources {\ncpu = 1.5\n}", "line 10: cpu: a whole number is required"),
        ("env {\nA = var.nope\n}", 'line 10: there is no variable "nope"'),
        ("env {\nA = var.unset\n}", 'line 10: variable "unset" has no default value'),
        ("env {\nA = local.loop\n}", 'the local value "loop" refers to itself'),
        ("env {\nA = attr.x + 1\n}", "line 10: a number is required, not '${attr.x}'"),
        ("env {\nA = 1 / 0\n}", "line 10: division by zero"),
        ('env {\nA = file("x")\n}', "line 10: the function file is not supported here"),
        ('env {\nA = [for x in ["a"] : x]\n}', "line 10: this expression is not supported here"),
        ('env {\nA = "%{ if true }x%{ endif }"\n}', "line 10: this expression is not supported here"),
        ('env {\nA = "\\d"\n}', 'line 10: "\\d" is not a valid escape sequence'),
        ("env {\nA = <<E\nx\n${nope(1)}\nE\n}", "line 12: the function nope is not supported here"),
        ("env {", "this is not valid HCL"),
        ('task "x" {\n}', 'line 9: the block "task" is not supported in a "task" block'),
        ("artifact {\nsource = []\n}", "line 10: source: a string is required, not a list"),
        ('resources "x" {\n}', 'line 9: a "resources" block takes no label'),
    ],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path: Path, lines: str, message: str) -> None:
    file = tmp_path / "wrong.nomad.hcl"
    file.write_text(task_hcl(lines, 'variable "unset" {}\nlocals {\nloop = local.loop\n}'))

    with pytest.raises(JobFileError) as error:
        load_job(file)

    assert message in error.value.message
    assert str(error.value).startswith(str(file))
    assert error.value.file == file


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.json", "{", "Expecting property name"),
        ("x.json", "[]", "json: cannot unmarshal array into Go struct field JobRegisterRequest.Job"),
        ("x.json", '{"Job": {"ID": "x"}}', "Missing job task groups"),
        ("x.yaml", "", "a job file ends in .json, .nomad, .nomad.hcl or .hcl"),
        ("x.nomad", "", "one job block is needed, found 0"),
        ("x.hcl", 'job "a" {}\njob "b" {}\n', "one job block is needed, found 2"),
        ("x.hcl", "job {}\n", 'a "job" block takes one label'),
        ("x.hcl", 'plugin "a" {}\n', 'blocks of type "plugin" are not supported'),
        ("x.hcl", 'job "a" {\ntype = "batch"\n}\n', "Missing job task groups"),
    ],
)
def test_a_file_that_holds_no_job_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)

    with pytest.raises(JobFileError) as error:
        load_job(tmp_path / name)

    assert message in error.value.message


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(JobFileError, match="No such file"):
        load_job(tmp_path / "nope.nomad.hcl")


def test_without_the_hcl_parser_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "hcl2", None)

    with pytest.raises(JobFileError, match=r"pip install 'nomad-dispatch-worker\[dev\]'"):
        load_job(FILES / "minimal.nomad.hcl")


def test_ports_with_and_without_a_fixed_number_are_told_apart() -> None:
    text = """
        job "j" {
          group "g" {
            network {
              mode = "bridge"
              port "http" { static = 8080 }
              port "metrics" { to = 9090 }
            }
            service {
              name = "s"
              port = "http"
              check {
                type     = "tcp"
                interval = "10s"
              }
            }
          }
        }
    """

    group = parse_hcl(text)["TaskGroups"][0]

    assert group["Networks"] == [
        {
            "Mode": "bridge",
            "ReservedPorts": [{"Label": "http", "Value": 8080}],
            "DynamicPorts": [{"Label": "metrics", "To": 9090}],
        }
    ]
    assert group["Services"] == [
        {"Name": "s", "PortLabel": "http", "Checks": [{"Type": "tcp", "Interval": 10_000_000_000}]}
    ]


@pytest.mark.parametrize("name", ["encode", "render", "strict"])
def test_the_example_jobs_run_once_and_only_on_dispatch(name: str) -> None:
    job = load_job(EXAMPLES / f"{name}.nomad.hcl")
    (group,) = job["TaskGroups"]

    assert job["ID"] == name
    assert job["ParameterizedJob"] is not None
    assert group["RestartPolicy"]["Attempts"] == 0
    assert (group["ReschedulePolicy"]["Attempts"], group["ReschedulePolicy"]["Unlimited"]) == (0, False)


def test_the_demo_jobs_cover_the_three_payload_rules() -> None:
    rules = {job["ID"]: job["ParameterizedJob"]["Payload"] for job in demo_jobs()}

    assert rules == {"demo-encode": "required", "demo-flaky": "forbidden", "demo-render": "optional"}
