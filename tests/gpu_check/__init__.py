"""What a GPU machine takes and keeps, measured by one command: `make gpu-check`."""
