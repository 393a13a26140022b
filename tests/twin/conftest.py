import pytest
from vllm.logger import init_logger

from mars.vllm_plugin.tiny_model import make_tiny_model

init_logger("vllm").setLevel("ERROR")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--workloads",
        type=int,
        default=1,
        help="Random workloads per policy and cell: memory, shared prompts, lag, KV groups.",
    )


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_tiny_model(tmp_path_factory.mktemp("model") / "tiny"))
