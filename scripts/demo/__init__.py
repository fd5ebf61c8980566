"""How the embedded pool and backbone were made."""
