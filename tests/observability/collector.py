"""An OTLP receiver in a process of its own: `python -m tests.observability.collector PORT`.

It takes what any OTLP/HTTP collector takes, and shows the spans it was sent as JSON.
"""

import sys

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

SPANS = web.AppKey("spans", list[dict[str, object]])


async def receive(request: web.Request) -> web.Response:
    """POST /v1/traces."""
    assert request.content_type == "application/x-protobuf"
    sent = ExportTraceServiceRequest.FromString(await request.read())
    for group in sent.resource_spans:
        resource = {one.key: one.value.string_value for one in group.resource.attributes}
        for scope in group.scope_spans:
            request.app[SPANS].extend(
                {
                    "name": span.name,
                    "trace_id": span.trace_id.hex(),
                    "span_id": span.span_id.hex(),
                    "parent": span.parent_span_id.hex(),
                    "start": span.start_time_unix_nano,
                    "end": span.end_time_unix_nano,
                    "status": span.status.code,
                    "kind": span.kind,
                    "resource": resource,
                    "attributes": {
                        one.key: one.value.string_value or one.value.int_value for one in span.attributes
                    },
                }
                for span in scope.spans
            )
    body = ExportTraceServiceResponse().SerializeToString()
    return web.Response(body=body, content_type="application/x-protobuf")


async def show(request: web.Request) -> web.Response:
    """GET /spans."""
    return web.json_response(request.app[SPANS])


def main() -> None:
    app = web.Application()
    app[SPANS] = []
    app.add_routes([web.post("/v1/traces", receive), web.get("/spans", show)])
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)


if __name__ == "__main__":
    main()
