"""How the bundled tiny model is made."""
