"""Images of a row: opening them safely, referring to them, and expanding their placeholders into tokens."""
