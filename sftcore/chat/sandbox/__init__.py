"""Chat templates are foreign code: Jinja's sandbox, with limits on what a template makes and how long it takes."""
