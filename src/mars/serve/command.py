"""`mars serve` at a terminal."""

import asyncio
import signal
from collections.abc import Callable

from mars.serve.stack import StackOptions, running_stack


def serve_until_interrupted(options: StackOptions, tell: Callable[[str], None]) -> None:
    """Serve until Ctrl-C or SIGTERM. Raises PartDiedError when a part ends by itself."""
    asyncio.run(_serve(options, tell))


async def _serve(options: StackOptions, tell: Callable[[str], None]) -> None:
    serving = asyncio.ensure_future(_watch(options, tell))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, serving.cancel)
    try:
        await serving
    except asyncio.CancelledError:
        tell("stopped")


async def _watch(options: StackOptions, tell: Callable[[str], None]) -> None:
    async with running_stack(options, tell) as stack:
        tell(f"policy        {options.settings.scheduling.policy}")
        tell(f"base URL      {stack.base_url}   (give this to any OpenAI client)")
        tell(f"who waits     {stack.gateway_url}/mars/sessions")
        tell(f"event log     {options.events}")
        tell("run a tool    mars exec --session ID -- COMMAND")
        tell("Ctrl-C ends it.")
        await stack.parts.watch()
