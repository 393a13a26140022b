"""What `mars openhands` does with a task: a conversation of OpenHands' default agent."""

import os

from mars.clients.task import AgentOptions, Task, Work
from mars.core.errors import InputError


def openhands_work(options: AgentOptions) -> Work:
    """Raises InputError where OpenHands or the tool server is missing."""
    # For litellm: no price list from the network. For the SDK: its banner is no line of ours.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    os.environ.setdefault("OPENHANDS_SUPPRESS_BANNER", "1")
    try:
        from mars.clients.openhands import lease_terminals
    except ModuleNotFoundError as error:
        raise InputError(
            f"OpenHands is not installed here ({error.name}): it needs Python 3.12 or later, and "
            "pip install 'mars[openhands]'"
        ) from None
    if options.leases:
        lease_terminals(options.state_file)
    return _converse


def _converse(task: Task, options: AgentOptions) -> str:
    from openhands.sdk import LLM, Conversation, Tool
    from openhands.tools.preset.default import get_default_agent
    from pydantic import SecretStr

    llm = LLM(
        model=f"openai/{options.model}",
        base_url=options.base_url,
        api_key=SecretStr(options.api_key),
        usage_id="agent",
    )
    agent = get_default_agent(llm, cli_mode=True)
    if not options.leases:  # the same terminal as with leases
        alike = [Tool(name="terminal", params={"terminal_type": "subprocess"})]
        tools = alike + [tool for tool in agent.tools if tool.name != "terminal"]
        agent = agent.model_copy(update={"tools": tools})
    conversation = Conversation(
        agent=agent,
        workspace=task.workspace,
        conversation_id=task.conversation_id,
        visualizer=None,
    )
    try:
        conversation.send_message(task.task)
        conversation.run()
        return str(conversation.state.execution_status.value)
    finally:
        conversation.close()
