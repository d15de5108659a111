"""Finished runs put to use: loaded, predicting, exported."""
