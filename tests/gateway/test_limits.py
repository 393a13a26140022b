"""Requests that go no further, and the health of the engine."""

import msgspec
import pytest
from tests.gateway.conftest import CHAT, Rig, gateway
from tests.gateway.scripted import Engine, Exchange, closed_port, hanging, until

from mars.gateway.settings import GatewaySettings


class TestLimits:
    async def test_a_body_at_the_limit_passes_and_a_larger_one_is_413(self, engine: Engine) -> None:
        async with gateway(engine.url, GatewaySettings(body_bytes=1000)) as rig:
            for route in (CHAT, "/v1/embeddings"):
                fits = await rig.http.post(rig.url + route, data=b'{"a":"' + b"x" * 992 + b'"}')
                assert fits.status == 200
                response = await rig.http.post(rig.url + route, data=b"x" * 1001)
                assert response.status == 413
                error = msgspec.json.decode(await response.read())["error"]
                assert error["type"] == "request_too_large"
                assert "1000 bytes" in error["message"]
                assert "body_bytes" in error["message"]
            assert len(engine.seen) == 2

    async def test_a_chunked_body_is_bounded_too(self, engine: Engine) -> None:
        async def endless() -> object:
            for _ in range(100):
                yield b"x" * 100_000

        async with gateway(engine.url, GatewaySettings(body_bytes=1000)) as rig:
            response = await rig.http.post(rig.url + CHAT, data=endless())
            assert response.status == 413
            assert engine.seen == []

    @pytest.mark.parametrize(
        ("headers", "fields"),
        [
            ({"X-Session-ID": "x" * 257}, {}),
            ({}, {"session_id": "x" * 257}),
            ({}, {"job_id": "\0"}),
        ],
    )
    async def test_a_bad_id_is_400(
        self, engine: Engine, rig: Rig, headers: dict[str, str], fields: dict[str, str]
    ) -> None:
        response = await rig.post(None, headers=headers, fields=fields)
        assert response.status == 400
        error = msgspec.json.decode(await response.read())["error"]
        assert error["type"] == "invalid_session_id"
        assert "session id" in error["message"]
        assert engine.seen == []
        assert rig.events == []


class TestHealth:
    async def test_health_asks_the_engine(self, engine: Engine, rig: Rig) -> None:
        async with rig.http.get(rig.url + "/health") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
        assert engine.last.target == "/health"

    async def test_health_says_why_not(self, engine: Engine, rig: Rig) -> None:
        async def script(exchange: Exchange) -> None:
            await exchange.answer(500, [], b"")

        engine.script = script
        async with rig.http.get(rig.url + "/health") as response:
            assert response.status == 503
            assert "says HTTP 500" in (await response.json())["why"]

    async def test_health_without_an_engine(self) -> None:
        async with (
            gateway(closed_port()) as rig,
            rig.http.get(rig.url + "/health") as response,
        ):
            assert response.status == 503
            assert "cannot reach the engine" in (await response.json())["why"]

    async def test_health_of_an_engine_that_hangs(self, engine: Engine) -> None:
        engine.script = hanging
        async with gateway(engine.url, GatewaySettings(connect_s=0.05)) as rig:
            async with rig.http.get(rig.url + "/health") as response:
                assert response.status == 503
            await until(engine.last.closed.is_set)
