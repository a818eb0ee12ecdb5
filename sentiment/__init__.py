"""Sentiment at scale: train classifiers on Ray, score archives to Parquet, serve them over HTTP."""
