"""Chat templates: how a conversation is rendered, which turns are trained on, and where an answer stops."""
