"""Recorded sessions, replayed against a real server, and what the event log says of it."""
