"""mini-swe-agent as somebody's script has it: everything by its own configuration.

python solve.py CONFIG.yaml TASK     in the agents' environment; prints how it ended
"""

import os
import sys

os.environ["MSWEA_SILENT_STARTUP"] = "1"

from minisweagent.agents.default import DefaultAgent
from minisweagent.config import get_config_from_spec
from minisweagent.environments import get_environment
from minisweagent.models import get_model

config = get_config_from_spec("mini.yaml")
own = get_config_from_spec(sys.argv[1])
agent = DefaultAgent(
    get_model(config=config["model"] | own["model"]),
    get_environment(config["environment"] | own["environment"]),
    **config["agent"],
)
sys.stdout.write(agent.run(sys.argv[2])["exit_status"] + "\n")
