"""Batch scoring: Ray Data from any archive to Parquet, each row once, and the evaluation of what it wrote."""
