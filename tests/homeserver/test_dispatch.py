# SPDX-License-Identifier: AGPL-3.0-or-later
"""What becomes of the answers of Synapse's resources, whichever way they are given."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

from synapse.api.errors import LimitExceededError, RedirectException, SynapseError
from synapse.http.server import (
    DirectServeJsonResource,
    respond_with_html,
    respond_with_json,
    respond_with_json_bytes,
    respond_with_redirect,
)
from synapse.http.site import SynapseRequest
from synapse.logging.context import current_context, make_deferred_yieldable
from synapse.util.cancellation import cancellable
from twisted.internet import reactor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import deferLater
from twisted.protocols.basic import FileSender
from twisted.trial.unittest import TestCase
from twisted.web.resource import Resource
from twisted.web.server import NOT_DONE_YET, Site

from synapse_lb.homeserver import dispatch, hooks, resources
from synapse_lb.homeserver.dispatch import SynapseDispatcher
from synapse_lb.msc3079.messages import NO_BODY, MatrixRequest, MatrixResponse

REACTOR: Any = reactor
CLIENT = IPv4Address("UDP", "192.0.2.7", 50000)
HOST = IPv4Address("UDP", "192.0.2.1", 8008)

Served = Callable[[Any], Any]


class ByHand(Resource):
    """A resource that writes its answer by itself."""

    isLeaf = True

    def __init__(self, serve: Served) -> None:
        untyped: Any = super()
        untyped.__init__()
        self.serve = serve

    def render(self, request: Any) -> Any:
        return self.serve(request) or NOT_DONE_YET


class Servlet(hooks.ObjectAnswers, DirectServeJsonResource):
    """A resource that returns or raises its answer, as Synapse's servlets do."""

    isLeaf = True

    def __init__(self, serve: Served) -> None:
        untyped: Any = super()
        untyped.__init__()
        self.serve = serve

    @cancellable
    async def _async_render_GET(self, request: SynapseRequest) -> tuple[int, Any] | None:
        result = self.serve(request)
        if isinstance(result, Deferred):
            result = await make_deferred_yieldable(result)
        return cast("tuple[int, Any] | None", result)

    async def _async_render_POST(self, request: SynapseRequest) -> tuple[int, Any]:
        assert request.content is not None
        return 200, {"got": request.content.read().decode(), "token": request.getHeader("Authorization")}


class _Routes:
    """Finds servlets as `ClientRestResource` does."""

    def __init__(self) -> None:
        self.searches: list[bytes] = []

    def _get_handler_for_request(self, request: Any) -> tuple[Any, str, dict[str, str]]:
        self.searches.append(request.path)
        callback = f"{request.method.decode()} {request.path.decode()}"
        if request.path.startswith(b"/with/"):
            return callback, "With", {"id": request.path[6:].decode()}
        return callback, "Plain", {}


class ResourceWithRoutes(resources.RememberedServlets, _Routes):
    """As much of a `ClientResource` as finds servlets."""

    def find(self, method: bytes, path: bytes) -> tuple[Any, str, dict[str, str]]:
        """The servlet of a request."""
        return self._get_handler_for_request(SimpleNamespace(method=method, path=path))


class FakeSite(Site):
    """As much of a `SynapseSite` as a request needs, with one resource for everything."""

    def __init__(self, resource: Resource) -> None:
        untyped: Any = super()
        untyped.__init__(resource)
        self.reactor = REACTOR
        self.site_tag = "test"
        self.server_version_string = b"Synapse"
        self.access_logger = logging.getLogger("tests.access")

    def getResourceFor(self, request: Any) -> Resource:
        return cast(Resource, self.resource)


class FakeHomeserver:
    """As much of a `hooks.Homeserver` as the dispatcher needs."""

    reactor = REACTOR

    def __init__(self, resource: Resource) -> None:
        self.resource = resource

    def site(self, *, tag: str, port: int, logger_name: str) -> Any:
        return FakeSite(self.resource)

    def request(self, channel: Any, site: Any) -> hooks.LowBandwidthRequest:
        return hooks.LowBandwidthRequest(
            channel, site, our_server_name="example.org", max_request_body_size=1000
        )


class DispatchTestCase(TestCase):
    """Serves single requests."""

    def dispatch(self, resource: Resource, request: MatrixRequest | None = None) -> Deferred[MatrixResponse]:
        """Serve one request with a resource."""
        homeserver = cast(hooks.Homeserver, FakeHomeserver(resource))
        dispatcher = SynapseDispatcher(homeserver, tag="test", port=8008, host=HOST)
        return dispatcher.dispatch(request or MatrixRequest("GET", b"/_matrix/client/x"), CLIENT)

    async def ask(self, resource: Resource, request: MatrixRequest | None = None) -> tuple[int, Any]:
        """Serve one request; returns status and body."""
        response = await self.dispatch(resource, request)
        return response.status, response.body


class ServletTests(DispatchTestCase):
    """Answers that are returned or raised."""

    async def failed(self, error: BaseException) -> MatrixResponse:
        """The response to a servlet that raises."""

        def serve(_: SynapseRequest) -> None:
            raise error

        return await self.dispatch(Servlet(serve))

    async def test_an_object_stays_the_same_object(self) -> None:
        answer = {"a": [1, None, {"b": "c"}]}
        status, body = await self.ask(Servlet(lambda _: (201, answer)))
        self.assertEqual(status, 201)
        self.assertIs(body, answer)

    async def test_the_request_as_synapse_sees_it(self) -> None:
        seen: list[Any] = []

        def serve(request: Any) -> tuple[int, Any]:
            seen.append((request.method, request.path, request.args, request.getHeader("Authorization")))
            seen.append(
                (request.getClientAddress(), request.getHost(), request.isSecure(), request.clientproto)
            )
            return 200, {}

        request = MatrixRequest("GET", b"/_matrix/client/%C3%BC%2F", b"a=1&a=%26", access_token="secret")
        await self.ask(Servlet(serve), request)
        self.assertEqual(
            seen,
            [
                (b"GET", b"/_matrix/client/%C3%BC%2F", {b"a": [b"1", b"&"]}, "Bearer secret"),
                (CLIENT, HOST, True, b"CoAP/1"),
            ],
        )

    async def test_a_body(self) -> None:
        request = MatrixRequest("POST", b"/_matrix/client/x", body={"ü": [1.5, 2**60, "\x00"]})
        status, body = await self.ask(Servlet(lambda _: None), request)
        self.assertEqual((status, body["token"]), (200, None))
        self.assertEqual(body["got"], '{"ü":[1.5,1152921504606846976,"\\u0000"]}')

    async def test_text_that_json_can_name_and_utf_8_cannot_hold(self) -> None:
        status, body = await self.ask(
            Servlet(lambda _: None), MatrixRequest("POST", b"/_matrix/client/x", body={"a": "\ud800"})
        )
        self.assertEqual((status, body["got"]), (200, '{"a":"\\ud800"}'))

    async def test_a_body_that_is_too_large_as_json(self) -> None:
        request = MatrixRequest("POST", b"/_matrix/client/x", body={"a": "\x00" * 200})
        status, body = await self.ask(Servlet(lambda _: None), request)
        self.assertEqual((status, body["errcode"]), (413, "M_TOO_LARGE"))

    async def test_a_wrong_method(self) -> None:
        status, body = await self.ask(Servlet(lambda _: None), MatrixRequest("PUT", b"/x"))
        self.assertEqual((status, body["errcode"]), (405, "M_UNRECOGNIZED"))

    async def test_a_matrix_error(self) -> None:
        response = await self.failed(SynapseError(409, "taken", "M_X", additional_fields={"y": 1}))
        self.assertEqual(response, MatrixResponse(409, {"error": "taken", "errcode": "M_X", "y": 1}))

    async def test_a_rate_limit(self) -> None:
        response = await self.failed(LimitExceededError("test", retry_after_ms=2500))
        self.assertEqual((response.status, response.retry_after), (429, 2.5))
        self.assertEqual(response.body["retry_after_ms"], 2500)

    async def test_when_to_come_again_by_header_alone(self) -> None:
        response = await self.failed(SynapseError(503, "busy", headers={"Retry-After": "7"}))
        self.assertEqual((response.status, response.retry_after), (503, 7.0))

    async def test_a_redirect_that_is_raised(self) -> None:
        response = await self.failed(RedirectException(b"https://x.invalid"))
        self.assertEqual((response.status, response.body["errcode"]), (501, "M_UNRECOGNIZED"))

    async def test_an_exception(self) -> None:
        with self.assertLogs("synapse_lb.homeserver.answers", logging.ERROR):
            response = await self.failed(RuntimeError("internal detail"))
        self.assertEqual(
            response, MatrixResponse(500, {"errcode": "M_UNKNOWN", "error": "Internal server error"})
        )

    async def test_an_exception_in_the_middle_of_writing(self) -> None:
        def serve(request: Any) -> None:
            request.setHeader(b"Content-Type", b"application/json")
            request.write(b'{"half":')
            raise RuntimeError("no more")

        with self.assertLogs("synapse_lb.homeserver.answers", logging.ERROR):
            status, body = await self.ask(Servlet(serve))
        self.assertEqual((status, body["errcode"]), (500, "M_UNKNOWN"))

    async def test_the_size_of_the_answer_goes_into_the_log(self) -> None:
        for resource in (
            Servlet(lambda _: (200, {})),
            ByHand(lambda request: respond_with_json_bytes(request, 200, b'{"a":1}')),
        ):
            with self.assertLogs("tests.access", logging.INFO) as logs:
                answered = self.dispatch(resource)
                answered.addCallback(lambda _: 4321)  # As the gateway does.
                await deferLater(REACTOR, 0)
                await deferLater(REACTOR, 0)
            self.assertEqual(len(logs.output), 1)
            self.assertIn(' 4321B 200 "GET /_matrix/client/x CoAP/1"', logs.output[0])

    async def test_a_request_begins_at_once(self) -> None:
        served: list[SynapseRequest] = []

        def serve(request: SynapseRequest) -> tuple[int, Any]:
            served.append(request)
            return 200, {}

        answered = self.dispatch(Servlet(serve))
        self.assertEqual(len(served), 1)
        self.assertFalse(answered.called)  # The caller could not have put its callbacks in place.
        await answered

    async def test_but_not_within_another(self) -> None:
        contexts: list[object] = []

        def serve(_: SynapseRequest) -> tuple[int, Any]:
            contexts.append(current_context())
            return 200, {}

        with hooks.logging_context("another", "example.org") as other:
            answered = self.dispatch(Servlet(serve))
            self.assertEqual(contexts, [])
        await answered
        self.assertEqual(len(contexts), 1)
        self.assertIsNot(contexts[0], other)

    async def test_a_client_that_goes_before_the_request_begins(self) -> None:
        served: list[SynapseRequest] = []
        with hooks.logging_context("another", "example.org"):
            answered = self.dispatch(Servlet(served.append))
        answered.cancel()
        await self.assertFailure(answered, CancelledError)
        await deferLater(REACTOR, 0)
        self.assertEqual(served, [])

    async def test_a_client_that_goes_before_it_is_answered(self) -> None:
        with self.assertLogs("tests.access", logging.INFO) as logs:
            answered = self.dispatch(Servlet(lambda _: (200, {})))
            answered.cancel()
            await self.assertFailure(answered, CancelledError)
            await deferLater(REACTOR, 0)
        self.assertEqual(len(logs.output), 1)
        self.assertIn('! "GET /_matrix/client/x CoAP/1"', logs.output[0])

    async def test_the_servlet_of_a_path_without_parameters_is_looked_for_once(self) -> None:
        resource = ResourceWithRoutes()
        for path in (b"/plain", b"/plain", b"/with/1", b"/with/1"):
            resource.find(b"GET", path)
        self.assertEqual(resource.searches, [b"/plain", b"/with/1", b"/with/1"])
        self.assertEqual(resource.find(b"GET", b"/plain"), ("GET /plain", "Plain", {}))
        self.assertEqual(resource.find(b"GET", b"/with/2"), ("GET /with/2", "With", {"id": "2"}))
        self.assertEqual(resource.find(b"PUT", b"/plain"), ("PUT /plain", "Plain", {}))

    async def test_what_is_remembered_of_paths_is_bounded(self) -> None:
        resource = ResourceWithRoutes()
        for number in range(3 * resources.MAX_PLACES):
            resource.find(b"GET", b"/plain/%d" % number)
            self.assertLessEqual(len(resource._places), resources.MAX_PLACES)
        long = b"/plain/" + b"x" * resources.MAX_PLACE
        resource.find(b"GET", long)
        resource.find(b"GET", long)
        self.assertEqual(resource.searches.count(long), 2)

    async def test_a_client_that_goes_cancels_the_servlet(self) -> None:
        cancelled: list[object] = []
        waiting: Deferred[Any] = Deferred(cancelled.append)
        answered = self.dispatch(Servlet(lambda _: waiting))
        await deferLater(REACTOR, 0)
        with self.assertLogs("tests.access", logging.INFO) as logs:
            answered.cancel()
            await self.assertFailure(answered, CancelledError)
        self.assertEqual(len(cancelled), 1)
        self.assertIn(" 499! ", logs.output[0])


class ByHandTests(DispatchTestCase):
    """Answers that a resource writes by itself."""

    async def test_json_bytes(self) -> None:
        body = {"a": "x" * 20_000}
        text = b'{"a": "' + b"x" * 20_000 + b'"}'
        answer = await self.ask(ByHand(lambda request: respond_with_json_bytes(request, 200, text)))
        self.assertEqual(answer, (200, body))

    async def test_json_from_a_thread(self) -> None:
        answer = await self.ask(ByHand(lambda request: respond_with_json(request, 403, {"errcode": "M_X"})))
        self.assertEqual(answer, (403, {"errcode": "M_X"}))

    async def test_what_should_be_json(self) -> None:
        status, body = await self.ask(ByHand(lambda request: respond_with_json_bytes(request, 200, b"{")))
        self.assertEqual((status, body["errcode"]), (500, "M_UNKNOWN"))

    async def test_nothing(self) -> None:
        def empty(status: int) -> Served:
            def serve(request: Any) -> None:
                request.setResponseCode(status)
                request.finish()

            return serve

        self.assertEqual(await self.ask(ByHand(empty(200))), (200, {}))
        self.assertEqual(await self.ask(ByHand(empty(204))), (204, NO_BODY))
        self.assertEqual(await self.ask(ByHand(empty(304))), (304, NO_BODY))

    async def test_a_redirect(self) -> None:
        status, body = await self.ask(
            ByHand(lambda request: respond_with_redirect(request, b"https://x.invalid"))
        )
        self.assertEqual((status, body["errcode"]), (501, "M_UNRECOGNIZED"))
        self.assertEqual(body["error"], "The answer is a redirect, which CoAP cannot carry; use HTTPS")

    async def test_a_web_page(self) -> None:
        status, body = await self.ask(ByHand(lambda request: respond_with_html(request, 200, "<p>")))
        self.assertEqual((status, body["errcode"]), (501, "M_UNRECOGNIZED"))
        self.assertEqual(body["error"], "The answer is a web page, which CoAP cannot carry; use HTTPS")

    async def test_an_error_as_a_web_page_keeps_its_status(self) -> None:
        status, body = await self.ask(ByHand(lambda request: respond_with_html(request, 403, "<p>")))
        self.assertEqual((status, body["errcode"]), (403, "M_UNKNOWN"))

    async def test_a_resource_that_fails(self) -> None:
        def serve(_: SynapseRequest) -> None:
            raise RuntimeError("rendering")

        status, body = await self.ask(ByHand(serve))
        self.assertEqual((status, body["errcode"]), (500, "M_UNKNOWN"))
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    async def test_of_a_file_only_the_beginning_is_read(self) -> None:
        file = io.BytesIO(b"\x89PNG" + bytes(10_000_000))
        sent: list[Any] = []

        def serve(request: Any) -> None:
            request.setHeader(b"Content-Type", b"image/png")
            transfer = FileSender().beginFileTransfer(file, request)
            transfer.addBoth(sent.append)
            transfer.addCallback(lambda _: request.unregisterProducer())
            transfer.addCallback(lambda _: request.finish())

        status, body = await self.ask(ByHand(serve))
        self.assertEqual((status, body["errcode"]), (501, "M_UNRECOGNIZED"))
        self.assertLess(file.tell(), 200_000)
        self.assertEqual(len(sent), 1)

    async def test_more_json_than_is_kept(self) -> None:
        self.patch(dispatch, "MAX_CAPTURED", 10_000)
        text = b'"' + b"x" * 20_000 + b'"'
        status, body = await self.ask(ByHand(lambda request: respond_with_json_bytes(request, 200, text)))
        self.assertEqual((status, body["errcode"]), (501, "M_UNRECOGNIZED"))
        self.assertIn("too large a body", body["error"])

    async def test_a_client_that_goes_ends_a_producer(self) -> None:
        ended: list[str] = []

        class Producer:
            def stopProducing(self) -> None:
                ended.append("stopped")

        def serve(request: Any) -> None:
            request.registerProducer(Producer(), True)

        answered = self.dispatch(ByHand(serve))
        await deferLater(REACTOR, 0)
        answered.cancel()
        await self.assertFailure(answered, CancelledError)
        self.assertEqual(ended, ["stopped"])
