"""`sftcore estimate`: what a recipe's run takes, and the cheapest change with which it fits."""
