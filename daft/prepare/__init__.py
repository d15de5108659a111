"""Images and checkpoints from elsewhere: fetched, verified, unpacked."""
