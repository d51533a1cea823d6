"""Real applications on real sockets, with the clients that people use."""
