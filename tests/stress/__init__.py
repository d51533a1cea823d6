"""The stress run: good clients, attacks and an unreliable application on one server, whose workers die and roll."""
