"""The HTTP service: one model behind the protocols that clients already speak, on replicas of Ray Serve.

`deployment` is what runs on Ray, `web` the application that any ASGI server could run, `engine` the model behind both.
"""
