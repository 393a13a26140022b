"""How facts travel: a bounded link between processes, and the log that is the only record."""
