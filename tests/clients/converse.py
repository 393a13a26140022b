"""A conversation of OpenHands as somebody's script has it, with what the defaults leave out.

python converse.py BASE_URL MODEL TASK [EVENTS]

In the agents' environment; condenses beyond so many events; prints its session's id.
"""

import sys

from openhands.sdk import LLM, Agent, Conversation, Tool
from openhands.sdk.context.condenser import LLMSummarizingCondenser
from openhands.tools.preset.default import register_builtins_agents
from openhands.tools.task import TaskToolSet
from pydantic import SecretStr

from mars.clients.openhands import lease_terminals

base_url, model, task, *events = sys.argv[1:]
lease_terminals()
register_builtins_agents(enable_browser=False)
llm = LLM(model=f"openai/{model}", base_url=base_url, api_key=SecretStr("none"), usage_id="agent")
agent = Agent(
    llm=llm,
    tools=[
        Tool(name="terminal", params={"no_change_timeout_seconds": 1}),
        Tool(name=TaskToolSet.name),
    ],
    tool_concurrency_limit=4,
    condenser=LLMSummarizingCondenser(
        llm=llm.model_copy(update={"usage_id": "condenser"}), max_size=int(*(events or ["240"]))
    ),
)
conversation = Conversation(agent=agent, workspace=".", visualizer=None)
conversation.send_message(task)
conversation.run()
conversation.close()
sys.stdout.write(f"\n{conversation.id}\n")
