"""A shop whose customers see the shelves as they are."""
