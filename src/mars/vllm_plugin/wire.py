"""The engine's end of the stream: facts out once a step, facts in without waiting."""

from collections.abc import Iterable

from mars.core.events import Event
from mars.stream.link import Publisher, Subscriber
from mars.vllm_plugin.settings import PluginSettings


class Wire:
    def __init__(self, settings: PluginSettings) -> None:
        self._publisher = Publisher(settings.publish) if settings.publish else None
        self._subscriber = Subscriber(settings.subscribe) if settings.subscribe else None
        self._outbox: list[Event] = []
        self.sampled_s = float("-inf")

    def emit(self, event: Event) -> None:
        if self._publisher is not None:
            self._outbox.append(event)

    def flush(self) -> None:
        if self._outbox and self._publisher is not None:
            self._publisher.send(self._outbox)
            self._outbox.clear()

    def inbox(self) -> Iterable[Event]:
        return () if self._subscriber is None else self._subscriber.drain()

    def close(self) -> None:
        self.flush()
        if self._publisher is not None:
            self._publisher.close()
        if self._subscriber is not None:
            self._subscriber.close()
