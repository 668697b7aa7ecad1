"""What a run shows while it goes: a live view in a terminal, else plain lines, lines of JSON, or a notebook's HTML."""
