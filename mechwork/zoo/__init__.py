"""How the bundled models were made, and how to make them again.

Owns the tokenizer, the grammar that writes training text, recipes, the training loop, the measurements on held-out
words and templates, and the cards. Imports `bundled`, `errors` and nothing above `models`.

    from mechwork.zoo import find_recipe, train
    run = train(find_recipe("gpt2-6l"), Path("runs/gpt2-6l"))
"""
