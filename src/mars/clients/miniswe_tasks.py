"""What `mars miniswe` does with a task: mini-swe-agent's default agent, as its `mini` has it."""

import os
from typing import Any

from mars.clients.task import FINISHED, AgentOptions, Task, Work
from mars.core.errors import InputError


def miniswe_work(options: AgentOptions) -> Work:
    """Raises InputError where mini-swe-agent is missing."""
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("MSWEA_SILENT_STARTUP", "1")  # its banner is no line of ours
    try:
        import minisweagent  # noqa: F401
    except ModuleNotFoundError as error:
        raise InputError(
            f"mini-swe-agent is not installed here ({error.name}): pip install 'mars[miniswe]'"
        ) from None
    del options
    return _solve


def _solve(task: Task, options: AgentOptions) -> str:
    from minisweagent.agents.default import DefaultAgent
    from minisweagent.config import get_config_from_spec
    from minisweagent.environments import get_environment
    from minisweagent.models import get_model

    config: dict[str, Any] = get_config_from_spec("mini.yaml")
    model = config["model"] | {
        "model_class": "mars.clients.miniswe.SessionModel",
        "model_name": f"openai/{options.model}",
        "session_id": str(task.conversation_id),
        "cost_tracking": "ignore_errors",
    }
    model["model_kwargs"] = model.get("model_kwargs", {}) | {
        "api_base": options.base_url,
        "api_key": options.api_key,
    }
    environment = config["environment"] | {"cwd": task.workspace}
    if options.leases:
        environment |= {
            "environment_class": "mars.clients.miniswe.LeasedEnvironment",
            "state_file": str(options.state_file),
        }
    agent = DefaultAgent(
        get_model(config=model),
        get_environment(environment, default_type="local"),
        **config["agent"],
    )
    status = agent.run(task.task)["exit_status"]
    return FINISHED if status == "Submitted" else str(status)
