"""The REST API: routes, bodies, errors, and the life of the server."""
