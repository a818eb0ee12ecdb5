"""The classifiers, their configurations, and the pretrained encoders that some are built on."""
