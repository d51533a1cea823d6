"""The process around a server: loading the application, settings, signals."""
