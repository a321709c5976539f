"""Grafana's JSON of a dashboard, from what one wants to see: rows, panels, queries, variables.

Knows nothing of the worker's metrics; what is asked is in `overview.py` and `one_job.py`.
"""  # noqa: INP001 - scripts, not a package

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA_VERSION = 39
"""Grafana 11. Newer ones migrate it when they load it."""
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
COLUMNS = 24

Kind = Literal["timeseries", "stat", "heatmap", "table"]
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Query:
    """One PromQL expression and what its series are called."""

    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """One panel. `unit` is Grafana's; `runbook` names an alert; `to_job` leads each series to its job."""

    title: str
    text: str
    unit: str
    queries: Sequence[Query]
    kind: Kind = "timeseries"
    width: int = 8
    height: int = 8
    runbook: str = ""
    also: Sequence[str] = ()
    """More alerts whose pages it leads to."""
    to_job: bool = False
    steps: Sequence[tuple[float | None, str]] = ((None, "green"),)
    stacked: bool = False
    exemplars: bool = False
    decimals: int | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under one heading, laid out from left to right."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top: the values of one label."""

    name: str
    label: str
    text: str
    query: str
    multi: bool = True


@dataclass(frozen=True, slots=True)
class Dashboard:
    """A whole dashboard. `uid` stays for ever: links and bookmarks hold it."""

    uid: str
    title: str
    text: str
    variables: Sequence[Variable]
    rows: Sequence[Row]
    tags: Sequence[str] = field(default=("dispatch-worker",))


def dashboard_json(dashboard: Dashboard) -> Json:
    """What Grafana imports."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "description": dashboard.text,
        "tags": list(dashboard.tags),
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "30s",
        "time": {"from": "now-3h", "to": "now"},
        "timezone": "",
        "annotations": {"list": [_deploys(), _alerts()]},
        "links": [_dashboards_link()],
        "templating": {"list": [_datasource(), *map(_variable, dashboard.variables), _runbooks()]},
        "panels": list(_laid_out(dashboard.rows)),
    }


# Panels -------------------------------------------------------------------------------------------


def _laid_out(rows: Iterable[Row]) -> Iterable[Json]:
    number = top = 0
    for row in rows:
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": row.title,
            "collapsed": False,
            "gridPos": {"x": 0, "y": top, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        top, left, height = top + 1, 0, 0
        for panel in row.panels:
            if left + panel.width > COLUMNS:
                top, left, height = top + height, 0, 0
            number += 1
            place = {"x": left, "y": top, "w": panel.width, "h": panel.height}
            yield {"id": number, "gridPos": place, **_panel(panel)}
            left, height = left + panel.width, max(height, panel.height)
        top += height


def _panel(panel: Panel) -> Json:
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "targets": [_target(panel, query, chr(ord("A") + at)) for at, query in enumerate(panel.queries)],
        "links": _runbook_links(panel),
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
        **({"transformations": _TABLE} if panel.kind == "table" else {}),
    }


def _target(panel: Panel, query: Query, name: str) -> Json:
    target: Json = {
        "refId": name,
        "datasource": DATASOURCE,
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        "editorMode": "code",
        "range": panel.kind in {"timeseries", "heatmap"},
        "instant": panel.kind in {"stat", "table"},
    }
    if panel.kind in {"heatmap", "table"}:
        target["format"] = panel.kind
    if panel.exemplars:
        target["exemplar"] = True
    return target


def _field(panel: Panel) -> Json:
    steps = [{"value": value, "color": color} for value, color in panel.steps]
    defaults: Json = {
        "unit": panel.unit,
        "thresholds": {"mode": "absolute", "steps": steps},
        "color": {"mode": "palette-classic" if panel.kind == "timeseries" else "thresholds"},
        "links": [_JOB_LINK] if panel.to_job else [],
    }
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    if panel.kind == "timeseries":
        defaults["min"] = 0
        defaults["custom"] = {
            "lineWidth": 1,
            "fillOpacity": 25 if panel.stacked else 8,
            "showPoints": "never",
            "stacking": {"mode": "normal" if panel.stacked else "none", "group": "A"},
            "thresholdsStyle": {"mode": "dashed" if len(panel.steps) > 1 else "off"},
        }
    return defaults


def _options(panel: Panel) -> Json:
    match panel.kind:
        case "stat":
            return {
                "colorMode": "background" if len(panel.steps) > 1 else "value",
                "graphMode": "none",
                "reduceOptions": {"calcs": ["lastNotNull"]},
                "textMode": "auto",
            }
        case "heatmap":
            return {
                "calculate": False,
                "cellGap": 1,
                "color": {"mode": "scheme", "scheme": "Blues", "steps": 64, "scale": "exponential"},
                "filterValues": {"le": 1e-9},
                "legend": {"show": True},
                "tooltip": {"mode": "single", "yHistogram": True},
                "yAxis": {"unit": panel.unit, "axisPlacement": "left"},
            }
        case "table":
            return {"showHeader": True, "cellHeight": "sm"}
        case _:
            return {
                "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]},
                "tooltip": {"mode": "multi", "sort": "desc"},
            }


_TABLE = [{"id": "organize", "options": {"excludeByName": {"Time": True, "Value": True, "__name__": True}}}]
_JOB_LINK = {
    "title": "This job: ${__field.labels.nomad_job}",
    "url": "/d/dispatch-worker-job?var-nomad_job=${__field.labels.nomad_job}&${datasource:queryparam}"
    "&${job:queryparam}&${__url_time_range}",
}


def _runbook_links(panel: Panel) -> list[Json]:
    alerts = [alert for alert in (panel.runbook, *panel.also) if alert]
    return [
        {"title": f"Runbook: {alert}", "url": f"${{runbooks}}/{alert}.md", "targetBlank": True}
        for alert in alerts
    ]


# What stands around the panels ----------------------------------------------------------------------


def _datasource() -> Json:
    return {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}


def _variable(variable: Variable) -> Json:
    return {
        "name": variable.name,
        "label": variable.label,
        "description": variable.text,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"qryType": 1, "query": variable.query, "refId": variable.name},
        "definition": variable.query,
        "multi": variable.multi,
        "includeAll": variable.multi,
        "allValue": ".*" if variable.multi else None,
        "current": {"text": "All", "value": "$__all"} if variable.multi else {},
        "refresh": 2,
        "sort": 1,
    }


def _runbooks() -> Json:
    address = "https://example.com/docs/runbook"
    return {
        "name": "runbooks",
        "label": "Runbooks at",
        "description": "Where you serve docs/runbook. Set it once and save the dashboard.",
        "type": "textbox",
        "query": address,
        "current": {"text": address, "value": address},
    }


def _deploys() -> Json:
    now = 'count by (job, version, revision) (dispatch_worker_build_info{job=~"$job"})'
    before = 'count by (job, version, revision) (dispatch_worker_build_info{job=~"$job"} offset 5m)'
    return _annotation("Deploys", f"{now} unless {before}", "blue", "{{version}} {{revision}}")


def _alerts() -> Json:
    expr = 'ALERTS{alertname=~"DispatchWorker.*", alertstate="firing"}'
    return _annotation("Alerts", expr, "red", "{{alertname}}")


def _annotation(name: str, expr: str, color: str, title: str) -> Json:
    return {
        "name": name,
        "datasource": DATASOURCE,
        "enable": True,
        "iconColor": color,
        "expr": expr,
        "step": "60s",
        "titleFormat": title,
    }


def _dashboards_link() -> Json:
    return {
        "title": "Dispatch worker",
        "type": "dashboards",
        "tags": ["dispatch-worker"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
    }


def text_of(dashboard: Dashboard) -> str:
    """The file's content."""
    return json.dumps(dashboard_json(dashboard), indent=2) + "\n"
