"""The losses of the perspective head."""
