"""The gateway: the Starlette app, what it is served by, and what only it needs."""
