"""The HTTP service: one model behind the protocols that clients already speak, on replicas of Ray Serve.

`app` is what runs on Ray, `asgi` the application that any ASGI server could run, `engine` the model behind both.
"""
