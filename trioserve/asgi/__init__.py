"""The application side: ASGI, written once above the exchange."""
