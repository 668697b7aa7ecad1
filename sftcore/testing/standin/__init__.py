"""A stand-in accelerator in pure Python, for machines without one."""
