"""Images: listed, decoded, transformed, and handed over in batches."""
