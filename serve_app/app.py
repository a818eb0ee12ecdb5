"""What Ray Serve imports: `serve deploy cluster/serve.yaml`, or `serve run serve_app.app:build model=BUNDLE`."""

# Without postponed annotations: Ray Serve looks at the builder's to learn the type of its arguments.
from ray import serve

from sentiment.config import load
from sentiment.settings import ServeSettings
from serve_app.deployment import application


def build(args: ServeSettings) -> serve.Application:
    """Build the application.

    Args:
        args: Fields of section serve, `model` above all; they win over the environment and ray_config.yaml.

    Raises:
        ConfigError: A value doesn't fit.
    """
    return application(load(ServeSettings, args.model_dump(exclude_unset=True)))
