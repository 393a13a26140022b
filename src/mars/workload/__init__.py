"""Sessions to serve: read from traces, sampled from recordings, or drawn from distributions."""
