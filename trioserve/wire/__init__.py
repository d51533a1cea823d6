"""The wire side: HTTP versions, each an implementation of the exchange."""
