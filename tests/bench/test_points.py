"""How a running vLLM is spoken to while it is measured."""

import asyncio

from mars.bench.points import http_to_engine

KEPT_S = 12.0
"""Above what is promised (2 s, which aiohttp looks at about as often), below aiohttp's own 15 s."""


async def test_an_idle_connection_is_closed_by_us_and_not_by_vllm() -> None:
    """An idle connection that vLLM closes, after 5 s, takes a prompt with it."""
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok")
        assert await reader.read() == b""
        closed.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1")
    host, port = server.sockets[0].getsockname()
    async with server, http_to_engine() as http:
        async with http.get(f"http://{host}:{port}/v1/models") as response:
            assert await response.text() == "ok"
        async with asyncio.timeout(KEPT_S):
            await closed.wait()
