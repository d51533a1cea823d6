"""What operators use, tried with the real thing: ``nox -s operations`` runs the files real_*.py."""
