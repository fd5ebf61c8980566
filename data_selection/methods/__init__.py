"""Selection methods: features and a budget in, pool indices out; ``table.METHODS`` names them all.

May import nearest and common.
"""
