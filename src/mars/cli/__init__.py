"""The command line. Exit codes: 0 done, 2 bad input, 3 a part died, 4 a result is not valid."""

import sys
from typing import Final

import click

from mars.cli import benches, runs, services, simulated
from mars.clients.command import miniswe, openhands
from mars.core.errors import MarsError

_COMMANDS: Final = (
    *(services.serve, services.gateway, services.key, services.tools, services.exec_),
    *(services.top, services.policies, openhands, miniswe),
    *(runs.replay, runs.bench_agents, runs.report, runs.explain, runs.export),
    *(runs.calibrate, runs.fidelity),
    *(simulated.simulate, simulated.compare, simulated.bench_simulator),
    *(benches.bench_scheduler, benches.bench_gateway, benches.bench_tools, benches.soak),
)


def main() -> None:
    try:
        cli(standalone_mode=False)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except MarsError as error:
        click.echo(f"mars: {error}", err=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="mars")
def cli() -> None:
    """Co-scheduling of GPU inference and CPU tools for fleets of LLM agents, on stock vLLM.

    `mars serve MODEL` starts everything; point any OpenAI client at the URL that it prints.
    """


for _command in _COMMANDS:
    cli.add_command(_command)
