"""What other tools call settings and their values, and what each is here: one table for advice and for importers."""
