"""A stand-in for a recorded command: burn CPU seconds, sleep the rest, end.

    python -I -S burn.py CPU_S RUN_S

The original containers are not available; what counts for scheduling is the time a command takes
and the CPU it takes it from. If the core is shared, burning takes longer, as it would have.
"""

import sys
import time


def main() -> None:
    cpu_s, run_s = float(sys.argv[1]), float(sys.argv[2])
    start_s = time.monotonic()
    while time.process_time() < cpu_s:
        pass
    time.sleep(max(0.0, run_s - (time.monotonic() - start_s)))


if __name__ == "__main__":
    main()
