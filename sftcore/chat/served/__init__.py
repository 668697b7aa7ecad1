"""How a saved model will be served: with the template and the tokens that it was trained with, or not."""
