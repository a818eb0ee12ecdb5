"""Where files are: paths and URIs, file systems, output directories and their locks."""
