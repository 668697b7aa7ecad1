"""What `sftcore doctor` looks at, one file for each concern; torch is not imported here."""
