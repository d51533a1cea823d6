"""The Autobahn test suite, run against trioserve's WebSockets."""
