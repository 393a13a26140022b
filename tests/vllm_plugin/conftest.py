from collections.abc import Callable
from typing import Any

import pytest
from vllm.logger import init_logger

from mars.core import events as ev
from mars.vllm_plugin.bare import BareEngine
from mars.vllm_plugin.scheduler import MarsScheduler
from mars.vllm_plugin.tiny_model import make_tiny_model

init_logger("vllm").setLevel("ERROR")

Engine = Callable[..., BareEngine]


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Engines:
    """Bare engines with our scheduler, a hand-set clock, and their facts in a list."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.clock = Clock()
        self.facts: list[ev.Event] = []

    def __call__(self, **options: Any) -> BareEngine:
        engine = BareEngine(MarsScheduler, model=self._model, **options)
        engine.scheduler._clock = self.clock
        engine.scheduler._wire.emit = self.facts.append
        engine.scheduler._holds._emit = self.facts.append
        engine.scheduler._calls._emit = self.facts.append
        return engine


@pytest.fixture
def engines(model: str) -> Engines:
    return Engines(model)
