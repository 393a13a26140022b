"""Names shared by every module, and the rule for units.

A quantity carries its unit in its name: `_s` seconds on the machine's monotonic clock, `_tokens`,
`_blocks`, `_cores`, `_bytes`, `_frac` a share (1.0 is all). Nothing is in milliseconds.
"""

from typing import NewType

SessionId = NewType("SessionId", str)
CallId = NewType("CallId", str)
ToolId = NewType("ToolId", str)
