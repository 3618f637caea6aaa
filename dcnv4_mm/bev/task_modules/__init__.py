"""How boxes become codes, and which prediction answers for which object."""
